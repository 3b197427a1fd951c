"""`lodisc report`, seen through a real browser from the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from pipelines.run.config import DataConfig
from pipelines.takeaway.findings import Findings, find
from pipelines.takeaway.options import ReportConfig
from pipelines.takeaway.report import ARTIFACT, report
from tests.pipelines.mlflow_pages import FLAGS, missing_browser
from tests.pipelines.tiny_run import TinyRun, make_run, write_checkpoint

SECTIONS = ["summary", "scores", "curves", "confusions", "neighbours", "pivots", "config"]
EVIL = ("<script>document.title = 1<", "<img src=x onerror=document.title=2>")


@contextmanager
def opened(page: Path) -> Iterator[webdriver.Chrome]:
    """Open a file in a browser that keeps what it logs and requests."""
    options = Options()
    options.binary_location = shutil.which("chromium") or ""
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.get(page.as_uri())
        yield driver
    finally:
        driver.quit()


def requested(driver: Any) -> list[str]:
    """Return the addresses that the page asked for, without those of its own content."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith("data:")]


def text_of(driver: Any, section: str) -> str:
    # `text` leaves out what is folded.
    return str(driver.find_element(By.ID, section).get_attribute("textContent"))


@dataclass(frozen=True)
class Reported:
    """A run, its report, and what was found for it."""

    run: TinyRun
    page: Path
    findings: Findings
    images: Path
    gallery: Path


@pytest.fixture(scope="module")
def labelled(
    ray_session: None, image_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Reported:
    """A report of a run on images of classes with dangerous names, in two families."""
    sources = []
    for per_class, size in ((5, 48), (7, 64)):
        folder = image_folder(classes=4, per_class=per_class, size=size)
        for number, name in enumerate(("fine/plain", "fine/other", f"evil/{EVIL[0]}", f"evil/{EVIL[1]}")):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / f"class-{number}").rename(folder / name)
        sources.append(folder)
    images, gallery = sources
    root = tmp_path_factory.mktemp("labelled")
    run = make_run(root / "run", DataConfig(images=str(gallery), eval_images=str(images)), name="<b>bold")
    kept: list[Findings] = []

    def find_and_keep(*arguments: Any) -> Findings:
        kept.append(find(*arguments))
        return kept[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.takeaway.report.find", find_and_keep)
        page = report(ReportConfig(run=str(run.checkpoint), out=str(root / "new" / "page.html"), count=2))
    return Reported(run, page, kept[0], images, gallery)


@pytest.mark.slow
def test_findings_are_of_the_images(labelled: Reported) -> None:
    found = labelled.findings
    assert (found.images, found.gallery, found.omissions) == (20, 28, [])
    assert found.before is not None and found.before != found.scores and found.before.keys() == found.scores.keys()
    assert found.mistakes is not None and found.mistakes.of == 20
    assert 100 * (1 - found.mistakes.wrong / 20) == pytest.approx(found.scores["knn/fine"])
    classes = {
        path.read_bytes(): str(path.parent.relative_to(labelled.images)) for path in labelled.images.rglob("*.jpg")
    }
    gallery = {
        path.read_bytes(): str(path.parent.relative_to(labelled.gallery)) for path in labelled.gallery.rglob("*.jpg")
    }
    for example in found.mistakes.examples:
        assert classes[example.taken] == example.confusion.truth
        assert gallery[example.taken_for] == example.confusion.predicted
    assert len({line.label for line in found.neighbours}) == 2
    for line in found.neighbours:
        assert classes[line.data] == line.label and len(line.found) == 6
        assert [gallery[near.data] for near in line.found] == [near.label for near in line.found]
        assert [near.similarity for near in line.found] == sorted(
            (near.similarity for near in line.found), reverse=True
        )


@pytest.mark.slow
@pytest.mark.skipif(missing_browser() is not None, reason=missing_browser() or "")
def test_the_page_opens_offline_with_all_sections(labelled: Reported) -> None:
    path, scores = labelled.page, labelled.findings.scores
    with opened(path) as driver:
        assert [section.get_attribute("id") for section in driver.find_elements(By.TAG_NAME, "section")] == SECTIONS
        links = [link.get_attribute("href").split("#")[1] for link in driver.find_elements(By.CSS_SELECTOR, "nav a")]
        assert links == SECTIONS and not driver.find_elements(By.CLASS_NAME, "missing")
        shown = text_of(driver, "scores")
        for name in ("knn/fine", "knn/coarse", "linear/top1", "retrieval/map"):
            assert f"{scores[name]:.1f} %" in shown
        assert len(driver.find_elements(By.CSS_SELECTOR, "#curves svg")) == 4
        assert len(driver.find_elements(By.CSS_SELECTOR, "#neighbours .line")) == 2
        figures = driver.find_elements(By.CSS_SELECTOR, "#pivots figure")
        assert len(figures) == 2 + 2 + 1
        images = driver.find_elements(By.TAG_NAME, "img")
        widths = driver.execute_script("return arguments[0].map(image => image.naturalWidth)", images)
        assert len(images) > 40 and min(widths) >= 160, "every picture was decoded"
        assert "mask_ratio" in text_of(driver, "config") and "0.7" in text_of(driver, "config")
        assert driver.get_log("browser") == [] and requested(driver) == [path.as_uri()]


@pytest.mark.slow
@pytest.mark.skipif(missing_browser() is not None, reason=missing_browser() or "")
def test_names_are_text_and_never_part_of_the_page(labelled: Reported) -> None:
    path = labelled.page
    with opened(path) as driver:
        assert driver.title == "<b>bold: LoDisc report"
        assert driver.find_elements(By.TAG_NAME, "script") == [] and driver.find_elements(By.TAG_NAME, "b") != []
        assert driver.find_element(By.TAG_NAME, "h1").text == "<b>bold"
        named = text_of(driver, "neighbours") + text_of(driver, "confusions") + text_of(driver, "pivots")
        assert any(f"evil/{name}" in named for name in EVIL)
        # Not even a phone must be wider than its screen.
        for width in (400, 1280):
            screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width == 400}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
            assert driver.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_the_page_is_kept_with_the_run(labelled: Reported, tmp_path: Path) -> None:
    run, path = labelled.run, labelled.page
    kept = Path(run.client.download_artifacts(run.run_id, ARTIFACT, str(tmp_path)))
    assert kept.read_bytes() == path.read_bytes()
    assert [each.name for each in path.parent.iterdir()] == ["page.html"], "nothing is left beside it"


@pytest.mark.slow
@pytest.mark.skipif(missing_browser() is not None, reason=missing_browser() or "")
def test_what_is_missing_is_said_in_its_place(
    ray_session: None, image_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images without labels, and a store that does not answer."""
    folder = image_folder(classes=1, per_class=5)
    for path in (folder / "class-0").iterdir():
        path.rename(folder / path.name)
    (folder / "class-0").rmdir()
    checkpoint = write_checkpoint(tmp_path / "run", DataConfig(images=str(folder)))
    page = report(ReportConfig(run=str(checkpoint), out=str(tmp_path / "page.html"), count=1))
    assert "warning: the report is not in MLflow" in capsys.readouterr().out
    with opened(page) as driver:
        assert "not every image has a label" in text_of(driver, "scores") and "RankMe" in text_of(driver, "scores")
        assert "http://127.0.0.1:9 does not answer" in text_of(driver, "curves")
        assert "No confusions: k-NN needs labelled images" in text_of(driver, "confusions")
        assert len(driver.find_elements(By.CSS_SELECTOR, "#neighbours .line img")) == 5, "the others are the gallery"
        assert len(driver.find_elements(By.CSS_SELECTOR, "#pivots figure")) == 3
        assert driver.get_log("browser") == []


@pytest.mark.slow
def test_images_that_are_gone_leave_the_curves(labelled: Reported, tmp_path: Path) -> None:
    run = labelled.run
    gone = DataConfig(images="gone/train", eval_images="gone/val")
    checkpoint = write_checkpoint(tmp_path / "run", gone, run.uri, run.run_id)
    html = report(ReportConfig(run=str(checkpoint), out=str(tmp_path / "page.html"))).read_text()
    assert html.count("gone/val: there is no such file or folder") == 4
    assert html.count("<svg") == 4 and "during pretraining, last" in html


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": "nowhere"}, "nowhere: neither a checkpoint folder"),
        ({"images": "gone"}, "gone: there is no such file or folder"),
        ({"images": ".", "gallery": "."}, "gallery must hold other images"),
        ({"out": "."}, r"out must be an HTML file, \. is a folder"),
        ({"count": 0}, "count must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_config_refuses(changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("step-00000007").mkdir()
    Path("step-00000007", "checkpoint.pt").touch()
    good: dict[str, Any] = {"run": "step-00000007", "out": "page.html"}
    ReportConfig(**good)
    with pytest.raises(ValueError, match=message):
        ReportConfig(**{**good, **changes})
