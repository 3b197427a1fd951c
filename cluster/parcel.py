"""A command line with what it needs, packed to be run on the head of a cluster."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

from pipelines.run.config import recipe_names

PACKAGES = ("lodisc", "pipelines", "tuning", "cluster")
# The definitions of clusters are for this machine, and secrets may lie beside them.
NOT_SENT = shutil.ignore_patterns("__pycache__", "definitions", ".env")
HERE_ONLY = ("--address", "--job_folder")


def pack(arguments: Sequence[str], place: str | None, parcel: Path) -> str:
    """Copy this code and the files that `--config` names to the folder `parcel`.

    Args:
        arguments: the command line, checked already.
        place: folder of the cluster that the command runs in and its relative paths are in; None is the current folder
            of this machine, which the cluster then must have too.
        parcel: what will be the current folder there.

    Returns:
        The shell command that runs `lodisc ARGUMENTS` there.
    """
    for package in PACKAGES:
        shutil.copytree(str(files(package)), parcel / package, ignore=NOT_SENT)
    command = " ".join(_packed(arguments, parcel))
    folder = shlex.quote(place or str(Path.cwd()))
    return f"sent=$PWD; cd {folder} && PYTHONPATH=$sent exec python -m cluster.cli {command}"


def _packed(arguments: Sequence[str], parcel: Path) -> Iterator[str]:
    """Yield the words of the command line, without what is for this machine, and name files by where they will be."""
    words = iter([part for word in arguments for part in _parts(word)])
    for number, word in enumerate(words):
        if word in HERE_ONLY:
            next(words)
        elif word == "--config":
            yield word
            yield _sent(next(words), parcel / f"config-{number}.yaml")
        else:
            yield shlex.quote(word)


def _sent(config: str, copy: Path) -> str:
    if config in recipe_names("pipelines") + recipe_names("tuning"):
        return shlex.quote(config)
    shutil.copy(config, copy)
    return f'"$sent"/{copy.name}'


def _parts(word: str) -> list[str]:
    """Return an option's name and value, where one word of the command line holds both."""
    name, equals, value = word.partition("=")
    return [name, value] if equals and name in (*HERE_ONLY, "--config") else [word]
