"""The options of what takes results away: checked values, to be had without torch and Ray, which take seconds.

What a check needs of these is imported when a config is made, not when a command is asked for its help.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from lodisc.bounds import bounds
from pipelines.run.files import require_writable

Target = Literal["timm", "safetensors", "torchvision", "onnx", "hf", "mlflow"]


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """What to embed, with which encoder, and where to.

    Attributes:
        checkpoint: a checkpoint folder, or a run folder, whose newest checkpoint is taken.
        images: the images to embed, `SRC` or `SRC@SPLIT`.
        out: folder for the Parquet files, local or URI: a new one, or the one of the same command when it was
            interrupted, which then continues.
        dtype: of the numbers kept.
        patch_tokens: keep the tokens of all patches too.
        batch_size: images a forward pass.
        shard_images: images a file, a multiple of batch_size. An interruption costs the file that was being written.
    """

    checkpoint: str
    images: str
    out: str
    dtype: Literal["float32", "float16"] = "float32"
    patch_tokens: bool = False
    batch_size: int = 64
    shard_images: int = 4096

    def __post_init__(self) -> None:
        from pyarrow import fs

        from pipelines.data.sources import find_source
        from pipelines.run.checkpoint import find_checkpoint
        from pipelines.takeaway.embeddings import EmbeddingFolder

        if self.dtype not in ("float32", "float16"):
            raise ValueError(f"dtype must be float32 or float16, got {self.dtype!r}")
        bounds(self, batch_size="at least 1")
        if self.shard_images < 1 or self.shard_images % self.batch_size:
            raise ValueError(f"shard_images ({self.shard_images}) must be a multiple of batch_size ({self.batch_size})")
        find_checkpoint(self.checkpoint)
        source, folder = find_source(self.images), EmbeddingFolder.at(self.out)
        if source.contains(folder.filesystem, folder.path):
            raise ValueError(f"out: {self.out} lies in the source; choose a folder outside")
        if folder.filesystem.get_file_info(folder.path).type == fs.FileType.File:
            raise ValueError(f"out: {self.out} is a file; choose a folder")
        if folder.is_foreign():
            raise ValueError(f"out: {self.out} holds something else than embeddings; choose a new folder")
        require_writable("out", self.out)


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """What to search for, and where.

    Attributes:
        embeddings: folder that `lodisc embed` has written, local or URI.
        image: image files to find the like of.
        k: how many to find for each.
        checkpoint: where the encoder of the embeddings lies now; None takes the place that the folder names.
        sheet: PNG file for the pictures of what was found.
    """

    embeddings: str
    image: list[str]
    k: int = 12
    checkpoint: str | None = None
    sheet: str = "search.png"

    def __post_init__(self) -> None:
        from pipelines.takeaway.embeddings import EmbeddingFolder
        from pipelines.takeaway.search import finished

        bounds(self, k="at least 1")
        if not self.image:
            raise ValueError("image: name at least one image file")
        if Path(self.sheet).suffix.lower() != ".png" or Path(self.sheet).is_dir():
            raise ValueError(f"sheet must be a PNG file, got {self.sheet}")
        finished(EmbeddingFolder.at(self.embeddings))
        require_writable("sheet", self.sheet)


@dataclass(frozen=True)
class Form:
    """A form of export.

    Attributes:
        module: that has `write(trained, path)` and `check(trained, path)`, and `refuse(trained)` where not every
            encoder can take the form.
        suffix: of the file; None where it is a folder.
        needs: packages beyond those that are always installed.
        tolerance: the largest difference of features that is rounding and no fault; 0 where it must be none.
    """

    module: str
    suffix: str | None = None
    needs: tuple[str, ...] = ()
    tolerance: float = 1e-4


FORMS: dict[str, Form] = {
    "timm": Form("timm_hub", tolerance=0.0),
    "safetensors": Form("single_file", suffix=".safetensors", tolerance=0.0),
    "torchvision": Form("torchvision_vit"),
    "onnx": Form("onnx_graph", suffix=".onnx", needs=("onnx", "onnxscript")),
    "hf": Form("transformers_vit"),
    "mlflow": Form("mlflow_model"),
}
assert set(FORMS) == set(get_args(Target))


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What to take away, in which form, and where to.

    Attributes:
        checkpoint: a checkpoint folder, or a run folder, whose newest checkpoint is taken.
        to: the form; timm, torchvision, hf (transformers) and mlflow are folders, safetensors and onnx single files.
        out: a new or empty folder, or a new file that ends in .safetensors or .onnx.
        license: of the weights, as apache-2.0, for the model card; None leaves a gap to fill in.
    """

    checkpoint: str
    to: Target
    out: str
    license: str | None = None

    def __post_init__(self) -> None:
        from pipelines.run.checkpoint import find_checkpoint

        if self.to not in FORMS:
            raise ValueError(f"to must be one of {', '.join(FORMS)}, got {self.to!r}")
        form, out = FORMS[self.to], Path(self.out)
        if "://" in self.out:
            raise ValueError(f"out must be a path on this machine, got {self.out}; copy the export there afterwards")
        if form.suffix and out.suffix != form.suffix:
            raise ValueError(f"out: {self.to} is a single file; give it a name that ends in {form.suffix}")
        if out.exists() and (form.suffix or not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"out: {self.out} exists already; choose another name, or remove it")
        if missing := [package for package in form.needs if find_spec(package) is None]:
            raise ValueError(f"to: {self.to} needs {' and '.join(missing)}; pip install 'lodisc[export]'")
        if self.license is not None and not self.license.strip():
            raise ValueError("license must not be empty")
        find_checkpoint(self.checkpoint)
        require_writable("out", self.out)


@dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """What to show, on which photographs.

    Attributes:
        checkpoint: a checkpoint folder, or a run folder, whose newest checkpoint is taken.
        images: an image file; or a source, `SRC` or `SRC@SPLIT`, of which `count` images are taken.
        out: folder for the pictures.
        count: how many images of a source are shown, spread over its classes.
        seed: draws the images and their random views.
    """

    checkpoint: str
    images: str
    out: str
    count: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        from pipelines.data.examples import in_shards
        from pipelines.run.checkpoint import find_checkpoint

        bounds(self, count="at least 1", seed="at least 0")
        if Path(self.out).exists() and not Path(self.out).is_dir():
            raise ValueError(f"out must be a folder, {self.out} is a file")
        find_checkpoint(self.checkpoint)
        in_shards(self.images)
        require_writable("out", self.out)

    @property
    def uses_ray(self) -> bool:
        """A few files need no cluster; shards are read by Ray."""
        from pipelines.data.examples import in_shards

        return in_shards(self.images)


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Which run to report, and on which images.

    Attributes:
        run: a run folder, whose newest checkpoint is taken, or a checkpoint folder.
        out: the HTML file.
        images: what to score the encoder on and to draw its pivots in, `SRC` or `SRC@SPLIT`; None takes the run's
            data.eval_images, or its data.images where it has none.
        gallery: other images, with labels, for k-NN to vote with and the linear probe to learn from; None takes the
            run's data.images.
        count: how many images are shown with their pivots, and with their nearest neighbours.
        seed: draws these images, and their random views.
        tracking_uri: MLflow store of the run; None takes the one that the checkpoint names.
    """

    run: str
    out: str
    images: str | None = None
    gallery: str | None = None
    count: int = 4
    seed: int = 0
    tracking_uri: str | None = None

    def __post_init__(self) -> None:
        from pipelines.data.sources import find_source
        from pipelines.run.checkpoint import find_checkpoint

        bounds(self, count="at least 1", seed="at least 0")
        if Path(self.out).is_dir():
            raise ValueError(f"out must be an HTML file, {self.out} is a folder")
        if self.images is not None and self.gallery == self.images:
            raise ValueError(f"gallery must hold other images than images ({self.images}): each would find itself")
        find_checkpoint(self.run)
        for source in (self.images, self.gallery):
            if source is not None:
                find_source(source)
        require_writable("out", self.out)
