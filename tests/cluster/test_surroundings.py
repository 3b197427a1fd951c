"""Users, homes, folders, proxies and CPUs as other machines have them. Where a surrounding can be made, it is real."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from requests.utils import should_bypass_proxies

from cluster import surroundings
from cluster.cli import main
from cluster.surroundings import (
    LONGEST_FOLDER,
    count_cpus,
    find_home,
    find_temporary,
    keep_token,
    name_user,
    own_folder,
    ray_folder,
    spare_proxy,
)
from pipelines.run.config import DataConfig, PretrainConfig
from pipelines.run.folder import claimed, named, open_run
from tests.cluster.nodes import Nodes
from tests.environment import environment_outside
from tests.pipelines.tiny_run import write_checkpoint

NAMELESS = 54321  # a user of whom the machine knows nothing
DEAD = "http://127.0.0.1:9"
PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "grpc_proxy", "all_proxy", "ALL_PROXY")
# What a Ray of this machine tells of itself, through its dashboard too; it ends when nobody writes to it any more.
TELL = """
import json, os, sys
from cluster.connect import connect
import ray
from ray.util.state import list_nodes
with connect():
    node = ray._private.worker.global_worker.node
    about = {"resources": ray.cluster_resources(), "folder": node.temp_dir, "nodes": len(list_nodes())}
    @ray.remote(num_cpus=0)
    def look():
        return {name: os.environ.get(name) for name in ("USER", "HOME", "TMPDIR")}
    about |= ray.get(look.remote()) | {"environment": ray.get_runtime_context().runtime_env}
    print(json.dumps(about), flush=True)
    sys.stdin.read()
"""
# What the command line does before Ray is imported.
PREPARED = "from cluster import surroundings; surroundings.prepare()\n"
# What `uv run` is to Ray: an ancestor of these words.
RUN_AS_UV = "import subprocess, sys\nsys.exit(subprocess.run({command!r}).returncode)\n"


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that is restored, of which the surroundings know nothing yet."""
    for name in (*PROXIES, "no_proxy", "NO_PROXY", "MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "RAY_TMPDIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name in ("TMPDIR", "LOGNAME", "USER", "HOME", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    for name in ("TMPDIR", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder of a path that sockets take."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def test_a_user_without_a_name_has_a_number(bare: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        bare.delenv(name, raising=False)
    bare.setattr("pwd.getpwuid", {}.__getitem__)
    name_user()
    assert os.environ["USER"] == os.environ["LOGNAME"] == str(os.getuid())


def test_the_caches_of_a_home_that_takes_none_lie_elsewhere(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("HOME", "/sys")
    find_home()
    keep_token()
    assert os.environ["HOME"] == "/sys"
    assert {Path(os.environ[name]).parent for name in ("MPLCONFIGDIR", "XDG_CACHE_HOME")} == {own_folder()}
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


def test_a_home_that_takes_files_is_left_alone(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare.setenv("HOME", str(tmp_path))
    find_home()
    keep_token()
    assert not {"MPLCONFIGDIR", "XDG_CACHE_HOME", "RAY_AUTH_TOKEN"} & os.environ.keys()
    assert list(tmp_path.iterdir()) == []


def test_who_has_no_home_at_all_is_given_one(bare: pytest.MonkeyPatch) -> None:
    bare.delenv("HOME")
    bare.setattr("pwd.getpwuid", {}.__getitem__)
    find_home()
    assert Path(os.environ["HOME"]) == own_folder()


def test_our_own_folder_is_nobody_elses(bare: pytest.MonkeyPatch, short: Path) -> None:
    bare.setenv("TMPDIR", str(short))
    folder = own_folder()
    assert folder == short / f"lodisc-{os.getuid()}" and stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    assert own_folder().parent == Path("/tmp"), "others could have put something there"
    folder.rmdir()
    folder.symlink_to("/tmp")
    assert own_folder().parent == Path("/tmp")


def test_a_long_temporary_folder_is_reached_by_a_short_path(bare: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = tmp_path / ("x" * 60)
    place.mkdir()
    bare.setenv("TMPDIR", str(place))
    find_temporary()
    again = os.environ["TMPDIR"]
    find_temporary()
    assert os.environ["TMPDIR"] == again and len(again) + len("/ray") <= LONGEST_FOLDER
    assert Path(again).samefile(place) and ray_folder() is None
    Path(again).unlink()


@pytest.mark.parametrize("place", ["/no/such/folder", "/sys", "relative", ""])
def test_a_temporary_folder_that_takes_nothing_is_passed_over(place: str, bare: pytest.MonkeyPatch) -> None:
    bare.setenv("TMPDIR", place)
    find_temporary()
    assert "TMPDIR" not in os.environ


def test_where_ray_cannot_write_it_is_given_a_folder(bare: pytest.MonkeyPatch, short: Path) -> None:
    bare.setenv("TMPDIR", str(short))
    assert ray_folder() is None
    (short / "ray").write_text("of somebody else")
    assert ray_folder() == str(own_folder() / "ray")
    bare.setenv("RAY_TMPDIR", f"/tmp/{'x' * 60}")
    assert ray_folder() == str(own_folder() / "ray")


def test_a_machine_without_a_folder_to_write_to_is_refused(bare: pytest.MonkeyPatch) -> None:
    bare.setattr(surroundings, "_can_be_written", lambda path: False)
    with pytest.raises(ValueError, match=r"^TMPDIR: none of /tmp, /var/tmp, /dev/shm takes a file"):
        ray_folder()


def test_this_machine_is_reached_past_the_proxy(bare: pytest.MonkeyPatch) -> None:
    spare_proxy()
    assert not {"no_proxy", "NO_PROXY"} & os.environ.keys(), "without a proxy there is nothing to say"
    bare.setenv("HTTP_PROXY", DEAD)
    bare.setenv("NO_PROXY", "intern.example.com")
    spare_proxy()
    spare_proxy()
    ours = (*surroundings._own_addresses(), "localhost", "intern.example.com")
    assert all(should_bypass_proxies(f"http://{name}:8265", None) for name in ours if ":" not in name)
    assert not should_bypass_proxies("http://mlflow.example.com:5000", None)
    assert os.environ["no_proxy"].count("intern") == 1


def test_who_uses_no_proxy_at_all_goes_on_so(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("http_proxy", DEAD)
    bare.setenv("no_proxy", "*")
    spare_proxy()
    assert os.environ["no_proxy"] == "*"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000"}, 64),
        ({"cpu.max": "400000 100000"}, 4),
        ({"cpu.max": "50000 100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ({"cpu/cpu.cfs_quota_us": "350000", "cpu/cpu.cfs_period_us": "100000"}, 3),
    ],
)
def test_cpus_are_those_of_the_container(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(f"{text}\n")
    monkeypatch.setattr(surroundings, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    assert count_cpus() == expected
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {5})
    assert count_cpus() == 2, "a run needs two places for work"


@pytest.mark.slow
def test_ray_hears_of_uv_before_it_is_imported(tmp_path: Path) -> None:
    """As the command line has it: `lodisc search` ends before Ray is needed, and after all that comes before."""
    code = (
        "import sys; from cluster.cli import main; main(['search', '/no/such', '--image', 'a.jpg'])\n"
        "import ray._private.ray_constants as told; sys.exit(told.RAY_ENABLE_UV_RUN_RUNTIME_ENV)"
    )
    subprocess.run([sys.executable, "-c", code], env=environment_outside(), cwd=tmp_path, check=True)


@pytest.mark.parametrize("command", ["embed", "evaluate", "export", "prepare", "report", "show", "demo"])
def test_where_nothing_can_be_written_no_work_begins(
    command: str, image_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = str(image_folder())
    run = str(write_checkpoint(tmp_path, DataConfig(images=images)))
    given = {
        "embed": [run, "--images", images, "--out", "/sys/out"],
        "evaluate": [run, "--images", images, "--output", "/sys/out/scores.json"],
        "export": [run, "--to", "timm", "--out", "/sys/out"],
        "prepare": [images, "/sys/out"],
        "report": [run, "--out", "/sys/out/page.html"],
        "show": [run, "--images", images, "--out", "/sys/out"],
        "demo": ["--data", images, "--storage", "/sys/out"],
    }
    assert main([command, *given[command]]) == 2
    said = capsys.readouterr().err
    assert said.startswith("lodisc: error: ") and said.count("\n") == 1
    assert " /sys/out" in said and " cannot be written: /sys: " in said


def test_a_storage_that_takes_nothing_is_refused_where_a_run_claims_its_name(image_folder: Callable[..., Path]) -> None:
    config = named(PretrainConfig(data=DataConfig(images=str(image_folder())), storage="/sys/runs"))
    with pytest.raises(ValueError, match=r"^storage: /sys/runs/"), claimed(config):
        pass


def test_a_home_and_spaces_in_a_storage_are_understood(home: Path, image_folder: Callable[..., Path]) -> None:
    data = DataConfig(images=str(image_folder()))
    assert named(PretrainConfig(data=data, storage="~/runs")).storage == f"{home}/runs"
    config = named(PretrainConfig(data=data, storage=f"file://{home}/my runs", name="first run"))
    assert config.storage == f"{home}/my runs"
    with claimed(config):
        open_run(config).write("config.yaml", "")
    assert (home / "my runs" / "first run" / "config.yaml").is_file()


def start(command: list[str], folder: Path, environment: dict[str, str], **how: Any) -> subprocess.Popen[str]:
    ours = {name: value for name, value in environment_outside().items() if name not in ("no_proxy", "NO_PROXY")}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=ours | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **how,
    )


@pytest.mark.slow
def test_two_commands_side_by_side_in_difficult_surroundings(short: Path, tmp_path: Path) -> None:
    """One in a long TMPDIR, with a home that takes nothing, one CPU, no GPU and a dead proxy, and 8265 is taken. One
    below `uv run` in a project, where another user has made Ray's folder."""
    long = tmp_path / ("x" * 60)
    long.mkdir()
    dead = {name: DEAD for name in PROXIES} | {"HOME": "/sys", "TMPDIR": str(long), "CUDA_VISIBLE_DEVICES": ""}
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("", 8265))
            taken.listen()
        except OSError:
            pass  # by another Ray, as it should be
        first = start([sys.executable, "-c", TELL], tmp_path, dead, preexec_fn=lambda: os.sched_setaffinity(0, {0}))
        (short / "ray").write_text("of somebody else")
        (tmp_path / "pyproject.toml").write_text("[project]\nname = 'mine'\nversion = '1'\n")
        (tmp_path / "run").write_text(RUN_AS_UV.format(command=[sys.executable, "-c", f"{PREPARED}{TELL}"]))
        second = start(["uv", "run"], tmp_path, {"TMPDIR": str(short)}, executable=sys.executable)
        told = [json.loads(process.stdout.readline()) for process in (first, second) if process.stdout]
        said = [process.communicate() for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0] and [error for _, error in said] == ["", ""]
    assert [about["nodes"] for about in told] == [1, 1]
    assert told[0]["resources"]["CPU"] == 2 and "GPU" not in told[0]["resources"]
    assert told[0]["HOME"] == "/sys" and Path(told[0]["TMPDIR"]).samefile(long)
    assert told[0]["folder"] == f"{told[0]['TMPDIR']}/ray"
    Path(told[0]["TMPDIR"]).unlink()
    assert told[1]["folder"] == f"{short}/lodisc-{os.getuid()}/ray"
    assert not {"working_dir", "py_executable"} & told[1]["environment"].keys()


@pytest.mark.slow
def test_a_token_that_is_missing_or_wrong_is_told_at_once(tmp_path: Path) -> None:
    with Nodes(tmp_path) as nodes:
        nodes.start("head", 1)
        command = [*nodes.head.prefix, sys.executable, "-m", "cluster.cli", "leave", "--address", nodes.address]
        home = {"HOME": str(tmp_path)}
        missing = start(command, tmp_path, home)
        wrong = start(command, tmp_path, home | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64})
        nowhere = start(command, tmp_path, home | {"RAY_AUTH_MODE": "token"})
        said = [process.communicate(timeout=60)[1] for process in (missing, wrong, nowhere)]
    assert [process.returncode for process in (missing, wrong, nowhere)] == [2, 2, 2]
    for text, what in zip(
        said, ("asks for a token; export RAY_AUTH_MODE=token", "refuses", "no token here"), strict=True
    ):
        assert text.startswith("lodisc: error: address: ") and what in text and text.count("\n") == 1


def in_container(folder: Path) -> list[str]:
    """Return what runs a command as a nameless user, with half a CPU, 2 GB, a small /dev/shm and Ray's folder closed.

    Skips the test where this user may not make namespaces.
    """
    group = folder / "cgroup"
    group.mkdir()
    (group / "cpu.max").write_text("50000 100000\n")
    (group / "memory.max").write_text(f"{2 << 30}\n")
    (group / "memory.current").write_text(f"{200 << 20}\n")
    (group / "memory.stat").write_text(f"anon {200 << 20}\nfile 0\nshmem 0\ninactive_file 0\nactive_file 0\n")
    (folder / "ray").mkdir()
    mounts = [
        "mount -t tmpfs -o size=64m tmpfs /dev/shm",
        f"mount --bind '{group}' /sys/fs/cgroup",
        f"mount -t tmpfs -o ro tmpfs '{folder}/ray'",
    ]
    user = f'exec unshare --user --map-user={NAMELESS} --map-group={NAMELESS} "$@"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", " && ".join([*mounts, user]), "sh"]
    tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"this user may not make namespaces of users and mounts: {tried.stderr.strip()}")
    return command


@pytest.mark.slow
@pytest.mark.privileged
def test_a_run_in_a_container_with_less_of_everything(image_folder: Callable[..., Path], short: Path) -> None:
    """A whole pretraining, of half a minute: what a user's name is for comes at its end."""
    home = short / "home"
    home.mkdir()
    options = {
        "data.images": image_folder(classes=2, per_class=8),
        "storage": short / "runs",
        "name": "tiny",
        "encoder.arch": "test_vit",
        "encoder.image_size": 32,
        "encoder.patch_size": 8,
        "encoder.depth": 1,
        "encoder.weights": "random",
        "model.hidden_dim": 16,
        "model.output_dim": 8,
        "optim.batch_size": 8,
        "optim.epochs": 1,
        "optim.warmup_epochs": 0,
    }
    command = [*in_container(short), sys.executable, "-m", "cluster.cli", "pretrain", "--config", "paper-vit-b16"]
    command += [f"--{name}={value}" for name, value in options.items()]
    environment = {name: value for name, value in environment_outside().items() if name not in ("USER", "LOGNAME")}
    environment |= {"HOME": str(home), "TMPDIR": str(short)}
    done = subprocess.run(command, cwd=short, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (short / f"lodisc-{NAMELESS}" / "ray").is_dir()
    assert "Traceback" not in done.stderr and (short / "runs" / "tiny" / "result.json").is_file()

    from mlflow import MlflowClient

    run_id = json.loads((short / "runs" / "tiny" / "tracking.json").read_text())["run_id"]
    tags = MlflowClient(f"sqlite:///{short}/runs/mlflow.db").get_run(run_id).data.tags
    assert tags["mlflow.user"] == str(NAMELESS)
