"""The page of a run: what is on it, in the words and pictures of its template."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from lodisc import __version__
from lodisc.views import eval_view
from pipelines.data.decode import decode_image
from pipelines.evaluation.scores import SCORES
from pipelines.pictures import Sheet, picture_of
from pipelines.run.config import flatten
from pipelines.takeaway.charts import SERIES, chart, short
from pipelines.takeaway.findings import Findings
from pipelines.tracking.record import RunRecord
from pipelines.tracking.store import without_password

TEMPLATE = "report.html"
THUMBNAIL = 160
LARGEST = 320  # side of a picture on the page, in pixels
QUALITY = 86  # of WebP

TILES = ("knn/fine", "linear/top1", "retrieval/rank1", "retrieval/map")
RECORDED = {
    "eval/": "during pretraining, last",
    "test/": "lodisc evaluate",
    "test-untrained/": "lodisc evaluate, untrained",
}


@dataclass(frozen=True)
class Plot:
    """Curves that share axes.

    Attributes:
        title: of the chart.
        about: how to read it.
        metrics: title by the metric's name in MLflow.
        unit: of the values.
        smooth: whether the curves are noisy.
    """

    title: str
    about: str
    metrics: Mapping[str, str]
    unit: str = ""
    smooth: bool = True


PLOTS = (
    Plot(
        "Loss",
        "Temperature and weights scale it: it tells whether a run learns, and cannot be compared between runs.",
        {"loss": "total", "loss/global": "global", "loss/local": "local"},
    ),
    Plot(
        "Contrast accuracy",
        "How often a view's own key is the best match in the batch. It is near 0 at first and should climb.",
        {"contrastive/top1": "top-1"},
        "%",
    ),
    Plot(
        "Learning rate",
        "A linear warm-up, then half a cosine.",
        {"schedule/learning_rate": "learning rate"},
        smooth=False,
    ),
    Plot(
        "k-NN on held-out images",
        "Frozen features, labels only to score. Comparable between runs.",
        {score.metric: score.title for score in SCORES.values() if score.probe == "knn"},
        "%",
    ),
    Plot(
        "Retrieval on held-out images",
        "Each image a query against all others.",
        {score.metric: score.title for score in SCORES.values() if score.probe == "retrieval"},
        "%",
    ),
    Plot(
        "Effective rank",
        "Over how many directions features spread. A fall towards 1 is a collapse.",
        {"feature/effective_rank": "of a batch", "eval/rankme": "RankMe"},
    ),
    Plot("Spread of features", "1 when spread evenly, 0 when collapsed.", {"feature/std": "spread"}),
    Plot(
        "Pivots",
        "Entropy is 1 where all patches score alike; overlap is the share of places that two views both keep.",
        {"pivots/entropy": "entropy", "pivots/overlap": "overlap"},
    ),
)


@dataclass(frozen=True)
class Page:
    """What a page is made of. Where something cannot be had, the reason stands in its place.

    Attributes:
        step: finished steps of training.
        config: of the run, nested plain values.
        run_id: of the run in MLflow.
        images: the source that was scored.
        gallery: the source of k-NN's gallery; None where there is none.
        record: from MLflow.
        findings: of the encoder's features.
        sheets: of pivots, by kind.
    """

    step: int
    config: Mapping[str, Any]
    run_id: str
    images: str
    gallery: str | None
    record: RunRecord | str
    findings: Findings | str
    sheets: Mapping[str, Sequence[Sheet]] | str


def render(page: Page) -> str:
    """Return the page as one HTML file, which loads nothing from elsewhere and runs no script."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipelines", "takeaway"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"src": _src, "thumbnail": _thumbnail, "percent": lambda share: f"{100 * share:.0f} %"}
    found = page.findings if isinstance(page.findings, Findings) else None
    return environment.get_template(TEMPLATE).render(
        page=page,
        found=found,
        name=page.config["name"],
        facts=_facts(page),
        tiles=_tiles(found),
        scores=_score_rows(found),
        recorded=_recorded(page.record),
        plots=_plots(page.record),
        groups=_groups(page.config),
        written=_date(datetime.now(UTC)),
        version=__version__,
    )


def _facts(page: Page) -> list[tuple[str, str]]:
    config, encoder, model = page.config, page.config["encoder"], page.config["model"]
    local = f"local view {model['local_view']}, weight {model['local_weight']:.3g}"
    optim = config["optim"]
    facts = [
        ("Encoder", f"{encoder['arch']}, {encoder['image_size']} px"),
        ("Method", local if model["local_weight"] else "MoCo v3 (no local branch)"),
        ("Trained", f"{page.step} steps, {optim['epochs']} epochs, batches of {optim['batch_size']}"),
    ]
    if isinstance(page.record, RunRecord):
        facts.append(("Started", _date(datetime.fromtimestamp(page.record.started / 1000, UTC))))
        took = [] if page.record.ended is None else [_duration((page.record.ended - page.record.started) / 1000)]
        facts.append(("Outcome", ", ".join([page.record.status.lower(), *took])))
    return facts


def _date(when: datetime) -> str:
    return when.strftime("%Y-%m-%d %H:%M UTC")


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"


@dataclass(frozen=True)
class ScoreRow:
    """A score of the trained encoder beside that before training, as text."""

    title: str
    value: str
    before: str | None
    change: str | None


def _score_rows(found: Findings | None) -> list[ScoreRow]:
    if found is None:
        return []
    return [_score_row(name, found) for name in SCORES if name in found.scores]


def _score_row(name: str, found: Findings) -> ScoreRow:
    value, before = found.scores[name], None if found.before is None else found.before[name]
    change = None if before is None else _number(name, value - before, "+").split()[0]
    return ScoreRow(_title(name), _number(name, value), None if before is None else _number(name, before), change)


def _title(name: str) -> str:
    title = SCORES[name].title
    return title[0].upper() + title[1:] if title.islower() else title


def _number(name: str, value: float, sign: str = "") -> str:
    """Return a score as text, with its unit."""
    return SCORES[name].text(value, sign).replace("-", "\N{MINUS SIGN}")


def _tiles(found: Findings | None) -> list[ScoreRow]:
    names = [] if found is None else [name for name in TILES if name in found.scores] or ["rankme", "uniformity"]
    return [_score_row(name, found) for name in names if found is not None and name in found.scores]


def _recorded(record: RunRecord | str) -> dict[str, Any] | None:
    """Return the scores that MLflow has as a table: titles of columns, and rows of a title and a cell a column."""
    if isinstance(record, str):
        return None
    columns = {title: values for prefix, title in RECORDED.items() if (values := record.last(prefix))}
    rows = [
        (_title(name), [_number(name, values[name]) if name in values else "" for values in columns.values()])
        for name in SCORES
        if any(name in values for values in columns.values())
    ]
    return {"columns": list(columns), "rows": rows} if rows else None


def _plots(record: RunRecord | str) -> list[dict[str, Any]]:
    if isinstance(record, str):
        return []
    drawn = []
    for plot in PLOTS:
        curves = {title: record.curves[name] for name, title in plot.metrics.items() if name in record.curves}
        if curves:
            assert len(curves) <= SERIES
            legend = [(title, f"{short(curve.values[-1])} {plot.unit}".strip()) for title, curve in curves.items()]
            # matplotlib escapes what it writes, and nothing in it is a user's text.
            svg = Markup(chart(curves, plot.unit, plot.smooth))
            drawn.append({"title": plot.title, "about": plot.about, "legend": legend, "svg": svg})
    return drawn


def _groups(config: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the config's groups with their fields as text; fields that are in no group come first, as `run`."""
    groups = {"run": {name: value for name, value in config.items() if not isinstance(value, Mapping)}} | {
        name: flatten(value) for name, value in config.items() if isinstance(value, Mapping)
    }
    return [(name, [(field, _plain(value)) for field, value in fields.items()]) for name, fields in groups.items()]


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value)
    text = {None: "none", True: "yes", False: "no"}.get(value) if value is None or isinstance(value, bool) else None
    return text or (f"{value:.6g}" if isinstance(value, float) else without_password(str(value)))


def _thumbnail(data: bytes) -> str:
    """Return an encoded image's evaluation view as the address of a picture on the page."""
    return _src(picture_of(eval_view(decode_image(data), THUMBNAIL)))


def _src(picture: Image.Image) -> str:
    """Return a picture as an address that holds it."""
    if picture.width > LARGEST:
        picture = picture.resize((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    stream = BytesIO()
    picture.save(stream, format="WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
