"""The options of `lodisc prepare`, to be had without Ray and pandas, which take seconds."""

from __future__ import annotations

from dataclasses import dataclass

from lodisc.bounds import bounds
from pipelines.run.files import require_writable


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """What to prepare, and where.

    Attributes:
        source: the images, `SRC` or `SRC@SPLIT`.
        destination: a new or empty folder, local or URI.
        max_side: largest short side in pixels; larger images are made smaller. None keeps every size.
        shard_mb: size of a Parquet file, in MB.
    """

    source: str
    destination: str
    max_side: int | None = None
    shard_mb: int = 128

    def __post_init__(self) -> None:
        from pyarrow import fs

        from pipelines.data.sources import find_source, open_filesystem

        bounds(self, max_side="at least 16", shard_mb="at least 1")
        source = find_source(self.source)
        filesystem, path = open_filesystem(self.destination)
        is_file = filesystem.get_file_info(path).type == fs.FileType.File
        if is_file or filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True)):
            raise ValueError(f"destination: {self.destination} is not empty; choose a new folder")
        if source.contains(filesystem, path):
            # The source would be taken for Parquet from then on.
            raise ValueError(f"destination: {self.destination} lies in the source; choose a folder outside")
        require_writable("destination", self.destination)
