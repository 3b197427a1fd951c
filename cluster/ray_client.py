"""Run a command on the head of a cluster that is reached by Ray's client protocol, for as long as this machine listens.

Ray Data does not run in a client. So what the client asks for is one task, which starts the command as a driver.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import ray
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

from cluster.connect import ENVIRONMENT, knock
from cluster.parcel import pack
from pipelines.run.nodes import HEAD


def run_there(arguments: Sequence[str], address: str, place: str | None) -> int:
    """Run `lodisc ARGUMENTS` on the head of a cluster, print here what it prints, and return its exit code.

    When this machine stops listening, Ray ends the command after half a minute; `--resume` continues a run.

    Args:
        arguments: the command line, checked already.
        address: ray://HOST:PORT.
        place: folder of the cluster to run in, see `pack`.

    Raises:
        ValueError: no cluster answers.
    """
    with tempfile.TemporaryDirectory() as parcel:
        command = pack(arguments, place, Path(parcel))
        sent = {
            "working_dir": parcel,
            "env_vars": {name: os.environ.get(name, ENVIRONMENT[name]) for name in ENVIRONMENT},
        }
        try:
            knock(address)
            ray.init(address, runtime_env=sent, logging_level=logging.ERROR)
        except OSError as error:
            raise ValueError(f"address: no Ray cluster answers at {address}: {error}") from error
        try:
            task = ray.remote(num_cpus=0, resources={HEAD: 0.001}, max_retries=0)(drive).options(name="lodisc")
            code: int = ray.get(task.remote(command))
            return code
        finally:
            ray.shutdown()


def drive(command: str) -> int:
    """Run a shell command, which Ray ends with this process, and return its exit code."""
    context = ray.get_runtime_context()
    # The command is a driver of its own, and its workers are to run the code that was sent too.
    sent = {"runtime_env": {"working_dir": context.runtime_env["working_dir"]}}
    environment = os.environ | {"RAY_ADDRESS": context.gcs_address, RAY_JOB_CONFIG_JSON_ENV_VAR: json.dumps(sent)}
    return subprocess.run(command, shell=True, env=environment, check=False).returncode
