"""Run a command as a job of a Ray cluster, whose head then drives it; this machine only reads along."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.connect import named_in_environment, refusal
from cluster.parcel import pack

LOCAL_SERVER = "http://127.0.0.1:8265"
# Between SIGTERM, at which a run saves a checkpoint, and SIGKILL.
STOP_SECONDS = "60"
INTERRUPTED = 130
PASSWORD = re.compile(r"//[^/@\s:]*:[^/@\s]+@")


@dataclass(frozen=True)
class Job:
    """A job that a server has taken.

    Attributes:
        client: of the server.
        server: its address.
        identity: the job's.
    """

    client: JobSubmissionClient
    server: str
    identity: str


def submit(arguments: Sequence[str], server: str | None, place: str | None) -> int:
    """Run `lodisc ARGUMENTS` on a cluster, print what it prints, and return its exit code.

    The cluster runs the code that is installed here. Ctrl-C asks whether to stop the job: a run that is stopped saves
    a checkpoint.

    Args:
        arguments: the command line, checked already.
        server: of jobs, http://HOST:PORT, which is the address of Ray's dashboard; None is the one of this machine.
        place: folder of the cluster to run in, see `pack`.

    Raises:
        ValueError: no job server answers at the address, or it refuses.
    """
    if any(PASSWORD.search(word) for word in arguments):
        raise ValueError(
            "submit: the address holds a password, which all would see who see the dashboard; give it to the cluster's "
            "nodes as MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    server = server or LOCAL_SERVER
    if not server.startswith(("http://", "https://")):
        raise ValueError(f"address: jobs are submitted to a job server, as {LOCAL_SERVER}, got {server!r}")
    try:
        with named_in_environment(server):
            client = JobSubmissionClient(server)
        logging.getLogger("ray").setLevel(logging.WARNING)
        with tempfile.TemporaryDirectory() as parcel:
            identity = client.submit_job(
                entrypoint=pack(arguments, place, Path(parcel)),
                runtime_env={"working_dir": parcel, "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": STOP_SECONDS}},
                submission_id=f"lodisc-{arguments[0]}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}",
            )
    except AuthenticationError as error:
        raise ValueError(f"address: {refusal(server)}") from error
    except (ConnectionError, RuntimeError) as error:
        raise ValueError(f"address: the Ray job server {server} does not take the job: {error}") from error
    job = Job(client, server, identity)
    print(f"job {identity} on {server}", file=sys.stderr, flush=True)
    try:
        return _follow(job)
    except KeyboardInterrupt:
        return _ask_to_stop(job)
    except (OSError, RuntimeError) as error:
        print(f"no more is heard of it: {error}", file=sys.stderr)
        return _leave_running(job)


def _follow(job: Job) -> int:
    """Print what the job prints until it ends, and return its exit code."""

    async def tail() -> None:
        async for lines in job.client.tail_job_logs(job.identity):
            print(lines, end="", flush=True)

    asyncio.run(tail())
    while not (about := job.client.get_job_info(job.identity)).status.is_terminal():
        time.sleep(0.2)
    if about.status == JobStatus.SUCCEEDED:
        return 0
    print(f"job {job.identity} {about.status.lower()}: {(about.message or '').split(',')[0]}", file=sys.stderr)
    return about.driver_exit_code or 1


def _ask_to_stop(job: Job) -> int:
    if not sys.stdin.isatty():
        return _leave_running(job)
    try:
        answer = input("\nStop the job too? A run saves a checkpoint first. [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        return _leave_running(job)
    job.client.stop_job(job.identity)
    _follow(job)
    return INTERRUPTED


def _leave_running(job: Job) -> int:
    follow = f"ray job logs --address {job.server} --follow {job.identity}"
    print(f"job {job.identity} runs on; read along with: {follow}", file=sys.stderr)
    return INTERRUPTED
