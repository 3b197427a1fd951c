"""A new MLflow database in milliseconds: MLflow's own way there is through all its migrations, which take seconds."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import tempfile
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path


def make_database(database: Path) -> None:
    """Make an empty MLflow database, a copy of the one that this user's first run with this MLflow has made.

    Raises:
        OSError: it cannot be written.
        mlflow.exceptions.MlflowException: MLflow cannot make it.
    """
    template = _template()
    # A folder beside it and not another name in it: until it is whole nobody may take it for the database.
    with tempfile.TemporaryDirectory(prefix=".new-store-", dir=database.parent) as folder:
        made = Path(folder) / database.name
        if template.is_file():
            shutil.copyfile(template, made)
        else:
            _migrate(made)
            with suppress(OSError):  # A home that cannot be written costs the next run these seconds again.
                _keep(made, template)
        os.replace(made, database)


def _template() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "lodisc" / f"mlflow-{version('mlflow')}.db"


def _migrate(database: Path) -> None:
    from mlflow import MlflowClient

    logger = logging.getLogger("mlflow.store.db.utils")
    level = logger.level
    logger.setLevel(logging.WARNING)  # or it says on the terminal that it makes tables
    try:
        MlflowClient(f"sqlite:///{database}").search_experiments(max_results=1)
    finally:
        logger.setLevel(level)
    # MLflow's first experiment names a folder for its files; every store is to make its own.
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("DELETE FROM experiments")


def _keep(database: Path, template: Path) -> None:
    template.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=template.parent)
    os.close(handle)
    shutil.copyfile(database, name)
    os.replace(name, template)
