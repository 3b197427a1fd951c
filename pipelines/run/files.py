"""Write files that are whole or not there, where they can be written at all."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlparse

ROOM = 1 << 20  # bytes that an output needs at the least


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside its own, and rename it; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def local_path(place: str) -> Path | None:
    """Return the absolute path of a place on this machine's file system, None for object stores; `~` is the home."""
    if place.startswith("file://"):
        return Path(unquote(urlparse(place).path))
    return None if "://" in place else Path(os.path.expanduser(place)).absolute()


def require_writable(field: str, path: str | Path) -> None:
    """Refuse an output that cannot be written, before the work whose result it is to take.

    It is tried for real in the nearest folder that exists, as permissions do not tell of file systems that are full or
    take no writes; nothing is left there. Object stores are left alone.

    Raises:
        ValueError: naming the field, the path and what stands in the way.
    """
    place = local_path(str(path))
    if place is None:
        return
    try:
        try_writing(nearest_folder(place), ROOM)
    except OSError as error:
        raise ValueError(
            f"{field}: {path} cannot be written: {error.filename}: {error.strerror}; make room, ask for the right, or "
            "choose another place"
        ) from error


def nearest_folder(path: Path) -> Path:
    """Return the innermost folder on the way to a file or folder that exists or is to be made.

    Raises:
        OSError: a file is in the way, or a folder that may not be looked into.
    """
    for place in path.parents if path.is_file() else (path, *path.parents):
        if place.is_dir():
            return place
        if os.path.lexists(place):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def try_writing(folder: Path, size: int) -> None:
    """Write so many bytes to a file in a folder, as long as it takes to learn whether that is possible.

    Raises:
        OSError: naming the folder.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(os.urandom(size))  # zeros take no room on some file systems
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error
