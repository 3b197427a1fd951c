"""A Ray cluster whose nodes are processes of this machine, each at an address of its own, to be broken.

Where this user may make network namespaces, as root may, a node is alone in one, behind a bridge: what one node hears
of another goes over that network. Elsewhere the nodes share the machine's address.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psutil

from tests.environment import environment_outside
from tests.pipelines.mlflow_server import free_port

START_SECONDS = 90.0
STORE_BYTES = 200_000_000


@dataclass
class Node:
    """A node that runs.

    Attributes:
        name: of the node, and of its log.
        address: its IP address.
        prefix: what runs a command at its address.
        process: the `ray start` that holds it.
    """

    name: str
    address: str
    prefix: list[str]
    process: subprocess.Popen[bytes] = field(repr=False)

    def processes(self) -> list[psutil.Process]:
        """Return all that runs for it."""
        try:
            return [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]
        except psutil.NoSuchProcess:
            return []

    def find(self, name: str) -> list[psutil.Process]:
        """Return its processes that bear a name, as `raylet` or `RayTrainWorker`."""
        return [process for process in self.processes() if name in _title(process)]

    def kill(self) -> None:
        """End it as a power cut would."""
        for process in self.processes():
            _send(process, signal.SIGKILL)
        self.process.wait()


class Nodes:
    """A cluster, in the open context. Commands of ours run on its head node.

    Args:
        folder: takes the nodes' logs and stands for the home of all their processes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes: dict[str, Node] = {}
        self._id = secrets.token_hex(2)
        self._network = Network(self._id) if may_make_namespaces() else None
        # At an address of their own nodes have Ray's usual ports, else such as no other Ray of this machine has.
        usual = (6379, 8265, 10001)
        self._port, self._dashboard_port, self._client_port = usual if self._network else [free_port() for _ in usual]
        self._temporary = tempfile.mkdtemp(prefix=f"ray-{self._id}-", dir="/tmp")  # short: sockets lie in it
        token = folder / "token"
        token.write_text(secrets.token_hex(16))
        self.environment = environment_outside() | {
            "HOME": str(folder),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            # A node that is gone is declared dead after 3 s instead of half a minute.
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in reversed(self.nodes.values()):
            node.kill()
        if self._network:
            self._network.remove()
        for folder in Path("/tmp").glob(f"{Path(self._temporary).name}*"):
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def head(self) -> Node:
        return next(iter(self.nodes.values()))

    @property
    def address(self) -> str:
        """Return where the cluster is joined."""
        return f"{self.head.address}:{self._port}"

    @property
    def client(self) -> str:
        """Return where clients of Ray are served."""
        return f"ray://{self.head.address}:{self._client_port}"

    @property
    def dashboard(self) -> str:
        """Return where jobs are submitted."""
        return f"http://{self.head.address}:{self._dashboard_port}"

    def start(
        self,
        name: str,
        cpus: int,
        labels: Sequence[str] = (),
        own: Sequence[Path] = (),
        autoscaling: Path | None = None,
        **environment: str,
    ) -> Node:
        """Start a node, the first of them as the head.

        Args:
            name: of the node.
            cpus: as Ray counts them.
            labels: as "ingest=true".
            own: folders in whose place it has empty ones of its own, where it is alone.
            autoscaling: the config by which the head adds nodes.
            environment: of its processes, beside what all have.
        """
        address = _own_address()
        prefix: list[str] = []
        if self._network:
            address, prefix = self._network.add()
            # What Ray keeps there is a machine's own too, as its logs, which would be told once for every node else.
            folders = [Path(self._temporary), *own]
            prefix += ["sh", "-c", " && ".join([*(self._mount(name, folder) for folder in folders), 'exec "$0" "$@"'])]
        command = ["start", "--block", "--num-cpus", str(cpus), "--object-store-memory", str(STORE_BYTES)]
        command += ["--node-ip-address", address, "--dashboard-agent-listen-port", "0", "--labels", ",".join(labels)]
        if self.nodes:
            command += ["--address", self.address]
        else:
            command += ["--head", "--port", str(self._port), "--temp-dir", self._temporary]
            command += ["--dashboard-host", "0.0.0.0", "--dashboard-port", str(self._dashboard_port)]
            command += ["--ray-client-server-port", str(self._client_port)]
            command += ["--autoscaling-config", str(autoscaling)] if autoscaling else []
        log = self.folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "ray.scripts.scripts", *command],
                env=self.environment | environment,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        node = Node(name, address, prefix, process)
        self.nodes[name] = node
        wait_for(lambda: "runtime started" in log.read_text(), START_SECONDS, lambda: f"{name}: {log.read_text()}")
        return node

    def _mount(self, name: str, folder: Path) -> str:
        """Return the shell command that puts a folder of a node's own in the place of one that all share."""
        mine = Path(f"{self._temporary}-{name}-{folder.name}")
        mine.mkdir()
        return f'mount --bind "{mine}" "{folder}"'

    @property
    def outside(self) -> str:
        """Return the address by which nodes reach this machine."""
        return f"{self._network.subnet}.254" if self._network else _own_address()

    def run(
        self, *arguments: str, node: Node | None = None, stdout: int | IO[str] = subprocess.PIPE, first: str = ""
    ) -> subprocess.Popen[str]:
        """Start `lodisc ARGUMENTS` on a node, by default the head, after a line of Python, and return its process."""
        python = ["-c", f"{first}\nfrom cluster.cli import command; command()"] if first else ["-m", "cluster.cli"]
        command = [*(node or self.head).prefix, sys.executable, *python, *arguments]
        return subprocess.Popen(
            command,
            env=self.environment,
            cwd=self.folder,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )


class Network:
    """Network namespaces joined by a bridge, on which the machine itself has the last address."""

    def __init__(self, identity: str) -> None:
        self.bridge = f"br{identity}"
        self.subnet = f"10.{77 + int(identity[:2], 16) % 100}.{int(identity[2:], 16)}"
        self.count = 0
        self.names: list[str] = []
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("addr", "add", f"{self.subnet}.254/24", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")

    def add(self) -> tuple[str, list[str]]:
        """Make a namespace, and return its address and what runs a command in it."""
        self.count += 1
        space, address = f"{self.bridge}-{self.count}", f"{self.subnet}.{self.count}"
        self.names.append(space)
        link = f"v{self.bridge}{self.count}"
        _ip("netns", "add", space)
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", link, "master", self.bridge, "up")
        _ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        _ip("-n", space, "link", "set", "lo", "up")
        return address, ["ip", "netns", "exec", space]

    def remove(self) -> None:
        for space in self.names:
            _ip("netns", "del", space)
        _ip("link", "del", self.bridge)


def wait_for(
    ready: Callable[[], bool], seconds: float = 120.0, why: Callable[[], str] = lambda: "", pause: float = 0.05
) -> float:
    """Wait until `ready` and return the seconds that it took; fail with `why` where it takes too long."""
    start = time.monotonic()
    while not ready():
        assert time.monotonic() - start < seconds, f"not within {seconds:g} s: {why()}"
        time.sleep(pause)
    return time.monotonic() - start


def may_make_namespaces() -> bool:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"try{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode != 0:
        return False
    _ip("netns", "del", name)
    return True


@contextmanager
def stopped(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """Hold processes still inside the block."""
    for process in processes:
        _send(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            _send(process, signal.SIGCONT)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def _send(process: psutil.Process, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process.pid, number)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join([process.name(), *process.cmdline()[:1]])
    except psutil.Error:
        return ""
