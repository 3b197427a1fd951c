"""MLflow's pages in a real headless Chromium: what a user would see there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

SECONDS = 90.0
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--force-device-scale-factor=1",
    "--hide-scrollbars",
    # The pages are served here; whatever they would load from elsewhere fails at once.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)
# A panel that MLflow opens over the pages of a new visitor.
NO_ASSISTANT = {"mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true", "mlflow.assistant.panelOpen_v1": "false"}
T = TypeVar("T")


def missing_browser() -> str | None:
    """Return why there is no browser to drive, None if there is one."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(missing)} not found (Debian: apt-get install chromium chromium-driver)" if missing else None


class Pages:
    """The pages of one experiment on the server at `uri`."""

    def __init__(self, uri: str, experiment_id: str) -> None:
        self.uri, self.experiment = uri, f"{uri}/#/experiments/{experiment_id}"

    def __enter__(self) -> Self:
        options = Options()
        options.binary_location = shutil.which("chromium") or ""
        for flag in FLAGS:
            options.add_argument(flag)
        self.driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        self.resize(1440, 1080)
        self.driver.get(self.uri)
        for key, value in NO_ASSISTANT.items():
            self.driver.execute_script("localStorage.setItem(arguments[0], arguments[1])", key, value)
        self.driver.refresh()
        self._one("//*[text()='Model training']").click()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.driver.quit()

    def listed_runs(self) -> set[str]:
        """Return the names in the experiment's list of runs."""
        self._open("/runs")
        return self._until(self._names)

    def expand(self, run_id: str) -> set[str]:
        """Unfold a run that others are nested under, in the list of runs, and return the names listed then."""
        before = self.listed_runs()
        self._one(f"//a[contains(@href, '{run_id}')]/ancestor::*[@role='gridcell'][1]//button").click()
        return self._until(lambda: names if (names := self._names()) > before else set())

    def parallel_coordinates(self, run_ids: Sequence[str]) -> set[str]:
        """Show MLflow's page that compares runs, with its parallel coordinates, and return the titles of the axes."""
        runs, experiments = json.dumps(list(run_ids)), json.dumps([self.experiment.rsplit("/", 1)[1]])
        self.driver.get("about:blank")
        self.driver.get(f"{self.uri}/#/compare-runs?runs={quote(runs)}&experiments={quote(experiments)}")
        self._one("//button[@role='tab' and @aria-selected='true' and text()='Parallel Coordinates Plot']")
        return {title.text for title in self._some("//*[name()='text' and contains(@class, 'axis-title')]")}

    def compare(self, metric: str, pattern: str | None = None, run_ids: Sequence[str] = ()) -> set[str]:
        """Show the charts of runs together, of all runs or the given ones.

        Args:
            metric: whose chart is read.
            pattern: regular expression of the metrics to show; None shows the one only.
            run_ids: runs to show.

        Returns:
            The runs with a drawn curve in the chart of `metric`.
        """
        chosen = f"attributes.run_id IN ({', '.join(repr(run_id) for run_id in run_ids)})" if run_ids else ""
        self._open(f"/runs?compareRunsMode=CHART&searchFilter={quote(chosen)}")
        self._one("//input[@placeholder='Search metric charts']").send_keys(pattern or metric)
        # A chart is drawn once it is scrolled into view.
        heading = self._one(f"//h4[@title='{metric}']")
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'nearest'})", heading)
        card = f"//h4[@title='{metric}']/ancestor::*[.//*[name()='path' and contains(@class, 'js-line')]][1]"
        lines = self._some(f"{card}//*[name()='path' and contains(@class, 'js-line')]")
        drawn = {line.value_of_css_property("stroke") for line in lines if len(line.get_attribute("d") or "") > 20}
        # The legend names every run on the page, those too that never had the metric.
        suffix = f" ({metric})"
        legend = {
            span.text.removesuffix(suffix): span.find_element(By.XPATH, "..//*[name()='path']")
            for span in self._some(f"//span[contains(text(), '{suffix}')]")
        }
        return {name for name, line in legend.items() if line.value_of_css_property("stroke") in drawn}

    def picture_size(self, run_id: str, artifact: str) -> tuple[int, int]:
        """Show a picture of a run and return the width and height of what the browser decoded."""
        self._open(f"/runs/{run_id}/artifacts/{artifact}")
        image = self._one(f"//img[@alt='{artifact}']")
        script = "return arguments[0].complete ? [arguments[0].naturalWidth, arguments[0].naturalHeight] : [0, 0]"
        width, height = self._until(lambda: [n for n in self.driver.execute_script(script, image) if n])
        assert image.is_displayed()
        return width, height

    def hide(self, text: str) -> None:
        """Leave out of the page whatever begins with this text."""
        for element in self._some(f"//*[starts-with(text(), '{text}')]/.."):
            self.driver.execute_script("arguments[0].style.visibility = 'hidden'", element)

    def resize(self, width: int, height: int) -> None:
        self.driver.set_window_size(width, height)

    def save(self, path: Path) -> None:
        """Keep what the window shows as a PNG."""
        self.driver.save_screenshot(str(path))

    def _names(self) -> set[str]:
        return {
            link.text for link in self.driver.find_elements(By.XPATH, "//a[contains(@href, '/runs/')]//span[text()]")
        }

    def _open(self, page: str) -> None:
        self.driver.get("about:blank")
        self.driver.get(f"{self.experiment}{page}")

    def _some(self, xpath: str) -> list[WebElement]:
        return self._until(lambda: self.driver.find_elements(By.XPATH, xpath))

    def _one(self, xpath: str) -> WebElement:
        return self._some(xpath)[0]

    def _until(self, find: Callable[[], T]) -> T:
        return WebDriverWait(self.driver, SECONDS).until(lambda _: find())
