"""One HTML page of a run: its config, curves, scores, confusions, nearest neighbours and pivots."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import ray.data

from lodisc.encoder import Encoder
from pipelines.data.examples import choose
from pipelines.data.scored import at_most
from pipelines.data.sources import find_source
from pipelines.data.verify import usable_images
from pipelines.run.checkpoint import load_encoder
from pipelines.run.files import write_whole
from pipelines.takeaway.findings import Findings, find
from pipelines.takeaway.options import ReportConfig
from pipelines.takeaway.report_page import Page, render
from pipelines.takeaway.show import load_untrained, run_sheets
from pipelines.tracking.record import RunRecord, read_record
from pipelines.tracking.store import open_client, without_password

ARTIFACT = "report/report.html"
T = TypeVar("T")


def report(config: ReportConfig) -> Path:
    """Write the page, and keep it with the run in MLflow as report/report.html. Ray must be running.

    What cannot be had is said on the page, in its place: curves where the store does not answer, scores and pictures
    where the run's own images are gone. Of the run's own images as many are used as in training
    (`evaluation.max_images`); of those that the config names, all.

    Raises:
        ValueError: there is no such run.
    """
    encoder, about = load_encoder(config.run)
    uri = config.tracking_uri or about["tracking_uri"]
    record = _or_reason(lambda: read_record(uri, about["run_id"]))
    images, gallery = _sources(config, about["config"]["data"])
    print(f"scoring on {images}" + (f", gallery {gallery}" if gallery else ""), flush=True)
    findings = _or_reason(lambda: _find(config, encoder, about["config"], images, gallery))
    print("drawing pivots", flush=True)
    sheets = _or_reason(lambda: run_sheets(config.run, choose(images, config.count, config.seed), config.seed))
    page = Page(about["step"], about["config"], about["run_id"], images, gallery, record, findings, sheets)
    html = render(page)
    path = Path(config.out)
    write_whole(path, html.encode())
    print(f"written to {path} ({len(html) / 1e6:.1f} MB)", flush=True)
    _keep(uri, about["run_id"], html, record)
    return path


def _sources(config: ReportConfig, data: dict[str, Any]) -> tuple[str, str | None]:
    """Return the images and the gallery, if there is one apart from them."""
    images: str = config.images or data["eval_images"] or data["images"]
    gallery: str = config.gallery or data["images"]
    if gallery == images or (config.gallery is None and isinstance(_or_reason(lambda: find_source(gallery)), str)):
        return images, None
    return images, gallery


def _find(config: ReportConfig, encoder: Encoder, run: dict[str, Any], images: str, gallery: str | None) -> Findings:
    limit, seed = run["evaluation"]["max_images"], run["seed"]

    def load(source: str, own: bool) -> ray.data.Dataset:
        usable = usable_images(source)
        return at_most(usable, limit, seed) if own else usable

    return find(
        encoder,
        load_untrained(config.run),
        load(images, config.images is None),
        None if gallery is None else load(gallery, config.gallery is None),
        run["encoder"]["image_size"],
        config.count,
        config.seed,
    )


def _or_reason(work: Callable[[], T]) -> T | str:
    """Return what the work returns, or why it cannot be done."""
    try:
        return work()
    except ValueError as error:
        print(f"warning: {error}", flush=True)
        return str(error)


def _keep(uri: str, run_id: str, html: str, record: RunRecord | str) -> None:
    if isinstance(record, str):
        print("warning: the report is not in MLflow, which did not answer", flush=True)
        return
    try:
        open_client(uri).log_text(run_id, html, ARTIFACT)
    except Exception as error:  # The report is written: no fault of a store may undo that.
        print(f"warning: the report is not in MLflow: {without_password(f'{uri}: {error}')}", flush=True)
    else:
        print(f"kept in MLflow as {ARTIFACT} of run {run_id}", flush=True)
