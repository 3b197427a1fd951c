"""How a command reaches Ray: a Ray of its own on this machine, or the cluster at an address."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import ray
import ray.data
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS, WORKER_PROCESS_SETUP_HOOK_ENV_VAR
from ray.core.generated import gcs_service_pb2, ray_client_pb2
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
from ray.core.generated.ray_client_pb2_grpc import RayletDriverStub
from ray.exceptions import AuthenticationError

from cluster import surroundings
from cluster.worker import quieten

# Defaults for this process and every Ray worker; a value that the user has set stays.
ENVIRONMENT = {
    # How often Train's controller looks at its workers. At its default of 2 s every checkpoint waits 1.6 s for it.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Train would show each printed line twice.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # What fails is told by the command's own last line (`pipelines/run/causes.py`).
    "RAY_DATA_LOG_LEVEL": "CRITICAL",
    # A task for which the memory does not suffice is tried again so often; by itself Ray would go on for ever.
    "RAY_task_oom_retries": "4",
    # In the workers too, where Ray Data would draw bars over our own.
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Acknowledges that Ray leaves CUDA_VISIBLE_DEVICES alone for tasks without a GPU, or it warns at every start.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Where addresses have no names, torch warns of it at every connection between workers.
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}

CLIENT = "ray://"
WORKER_HOOK = "cluster.worker.prepare_worker"
WANTED = "have that of its head in ~/.ray/auth_token, or in the file that RAY_AUTH_TOKEN_PATH names"


@contextmanager
def connect(address: str | None = None, num_cpus: int | None = None) -> Iterator[None]:
    """Have Ray running inside the block, and leave it at the end.

    A Ray that runs in this process already is used as it is. Otherwise `address`, or else the variable RAY_ADDRESS,
    names a cluster to join; this package and this release of Ray must be installed on its nodes. Without an address a
    Ray starts on this machine alone and ends with the block. Ray then keeps a token at ~/.ray/auth_token, which no
    other user should read; nodes of a cluster with RAY_AUTH_MODE=token must all hold the same.

    Args:
        address: `auto` for the cluster that this machine is a node of, or `HOST:PORT`, for a node of that one.
        num_cpus: CPUs that a Ray on this machine alone may use; None for all.

    Raises:
        ValueError: no cluster answers at the address, or it is no address.
    """
    if ray.is_initialized():
        yield
        return
    surroundings.prepare()
    os.environ |= ENVIRONMENT | os.environ
    quieten()
    logging.getLogger("ray.data").setLevel(os.environ["RAY_DATA_LOG_LEVEL"])
    ray.data.DataContext.get_current().enable_progress_bars = False  # it may have read the variable already
    _start(address or os.environ.get("RAY_ADDRESS"), num_cpus)
    try:
        with named_in_environment(ray.get_runtime_context().gcs_address):
            yield
    finally:
        ray.shutdown()


@contextmanager
def named_in_environment(address: str) -> Iterator[None]:
    """Have this process's questions about a cluster, and its jobs, go to the one at `address`, inside the block.

    Ray's state API and its clients of job servers ask the cluster that these variables name, whatever address they are
    given. Without them the state API looks for one on this machine, where there may be others.
    """
    before = {name: os.environ.pop(name, None) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    os.environ["RAY_ADDRESS"] = address
    try:
        yield
    finally:
        del os.environ["RAY_ADDRESS"]
        os.environ |= {name: value for name, value in before.items() if value is not None}


def _start(address: str | None, num_cpus: int | None) -> None:
    options: dict[str, Any] = {"runtime_env": {"env_vars": {name: os.environ[name] for name in ENVIRONMENT}}}
    options["runtime_env"]["worker_process_setup_hook"] = WORKER_HOOK
    if address is None:
        # Ray Train learns by the dashboard which runs have ended. Without one it asks that of any other Ray on this
        # machine, which knows nothing of them, and takes the machine from a run that goes on.
        options = {"num_cpus": num_cpus or surroundings.count_cpus(), "include_dashboard": True}
        options["_temp_dir"] = surroundings.ray_folder()
        surroundings.keep_token()
        # It watches for a cloud that takes a node back, which does not befall a machine that runs alone.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # Its processes inherit our environment, and so are used that it starts before it knows of a job. A job with an
        # environment of its own would wait for others.
        os.environ[WORKER_PROCESS_SETUP_HOOK_ENV_VAR] = WORKER_HOOK
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", address)
    try:
        if address is not None and address != "auto":
            knock(address)
        # Without a word Ray would join a cluster that this machine is a node of.
        ray.init(address or "local", logging_level=logging.ERROR, **options)
    except (OSError, AuthenticationError, ValueError) as error:
        if address is None:
            cure = "; give the machine, or the container, more memory" if "memory" in str(error) else ""
            raise ValueError(f"Ray does not start on this machine: {error}{cure}") from error
        if isinstance(error, ValueError):
            raise
        raise ValueError(f"address: no Ray cluster answers at {address}: {error}") from error
    finally:
        os.environ.pop(WORKER_PROCESS_SETUP_HOOK_ENV_VAR, None)


def knock(address: str) -> None:
    """Try the address once, as Ray itself would try a wrong one for minutes.

    Raises:
        ValueError: it is no address, or the cluster asks for a token that we do not have.
        OSError: nobody answers, or somebody else.
    """
    place = address.removeprefix(CLIENT)
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"address must be auto, HOST:PORT or ray://HOST:PORT, got {address!r}")
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    with init_grpc_channel(place, GLOBAL_GRPC_OPTIONS) as channel:
        try:
            _ask_for_a_sign(channel, of_clients=address.startswith(CLIENT))
        except AuthenticationError as error:
            raise ValueError(f"address: RAY_AUTH_MODE=token, and there is no token here; {WANTED}") from error
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                raise ValueError(f"address: {refusal(address)}") from error
            if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED:  # a head that has much to do
                raise ConnectionError(error.details()) from error


def _ask_for_a_sign(channel: grpc.Channel, of_clients: bool) -> None:
    """Ask a cluster's head, or its server of clients, what costs it nothing."""
    if of_clients:
        ping = ray_client_pb2.ClusterInfoRequest(type=ray_client_pb2.ClusterInfoType.PING)  # type: ignore[attr-defined]
        RayletDriverStub(channel).ClusterInfo(ping, timeout=10)
    else:
        sign = gcs_service_pb2.CheckAliveRequest()  # type: ignore[attr-defined]
        NodeInfoGcsServiceStub(channel).CheckAlive(sign, timeout=10)


def refusal(address: str) -> str:
    """Return what to tell where a cluster does not take our token, or lack of one."""
    if os.environ.get("RAY_AUTH_MODE") == "token":
        return f"the cluster at {address} refuses our token; {WANTED}"
    return f"the cluster at {address} asks for a token; export RAY_AUTH_MODE=token, and {WANTED}"
