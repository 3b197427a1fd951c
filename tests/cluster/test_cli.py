"""The console command as a user meets it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from ray.exceptions import OutOfMemoryError, RayTaskError

from cluster import cli
from cluster.cli import COMMANDS, main
from lodisc import __version__
from pipelines.run.causes import WorkersFailedError
from pipelines.run.config import PretrainConfig, load_recipe
from tests.environment import REPOSITORY

TUNE = ("tune", "--config", "grocery", "--data.images", "photos", "--data.eval_images", "held-out")
PRETRAIN = ("pretrain", "--config", "paper-vit-b16", "--data.images", "photos")


def fail_with_value_error(config: Any) -> None:
    raise ValueError(f"seed {config.seed} brings bad luck")


def fail_with_runtime_error(config: Any) -> None:
    raise RuntimeError("a fault of ours")


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return what a command that exits with 0 prints."""
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    assert leaving.value.code in (0, None)
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one error that a refused command prints."""
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("lodisc: error: ") and "Traceback" not in error
    return error


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_lists_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, *arguments)
    assert all(f"    {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there_and_explains_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(resolve_name(COMMANDS[name].function))
    text = printed(capsys, name, "--help")
    words = name.split("-")
    assert text.startswith(f"usage: lodisc {' '.join(words)} ")
    assert printed(capsys, *words, "--help") == text
    assert all(field.upper() in text for field in COMMANDS[name].positional)
    assert ("--job_folder" in text) == COMMANDS[name].uses_ray
    assert ("--config" in text) == (COMMANDS[name].recipes is not None)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "--version") == f"lodisc {__version__}\n"


def test_completion_knows_the_nested_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--model.temperature" in printed(capsys, "--print_completion", "shtab-bash")


def test_the_printed_config_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, *PRETRAIN, "--model.temperature", "0.1", "--address", "auto", "--print_config")
    path = tmp_path / "config.yaml"
    path.write_text(text.replace("address: auto\n", ""))
    expected = load_recipe("paper-vit-b16", {"data.images": "photos", "model.temperature": 0.1})
    assert load_recipe(str(path), {}) == expected
    assert printed(capsys, "pretrain", "--config", str(path), "--print_config") == path.read_text()


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["pretrian"], "pretrian"),
        (["pretrain", "--config", "paper"], "paper-vit-b16"),
        (["pretrain", "--config", "paper-vit-b16"], "data.images"),
        ([*PRETRAIN, "--model.temprature", "0.1"], "--model.temprature 0.1; lodisc pretrain --help lists its options"),
        ([*PRETRAIN, "--model.temperature", "warm"], "model.temperature"),
        ([*PRETRAIN, "--model.temperature", "-1"], "model.temperature"),
        ([*PRETRAIN, "--model.pivots", "best"], "model.pivots"),
        ([*PRETRAIN, "--compute.workers", "3"], "compute.workers"),
        ([*PRETRAIN, "--resume"], "resume"),
        ([*PRETRAIN, "--addr", "http://127.0.0.1:9"], "--addr"),
        ([*PRETRAIN, "--job_folder", "/shared"], "job_folder: the command runs here"),
        (["prepare", "photos"], "destination"),
        (["tune", "--config", "groceries"], "groceries: no such file"),
        ([*TUNE, "--objective", "loss"], "objective: loss cannot be tuned on"),
        ([*TUNE, "--sampler", "best"], "sampler"),
        ([*TUNE, "--trials", "0"], "trials"),
        (["tune", "report"], "sweep"),
        (["embed", "runs/mine", "--images", "photos"], "out"),
        (["search", "nowhere"], "image"),
        (["search", "nowhere", "--image", "a.jpg", "b.jpg", "-k", "0"], "k must be at least 1, got 0"),
        (["search", "nowhere", "--image", "a.jpg", "--sheet", "found.pdf"], "sheet must be a PNG file"),
    ],
)
def test_bad_options_are_refused_by_name(arguments: list[str], names: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert names in refused(capsys, *arguments)


def test_what_is_on_disk_is_looked_at_before_ray_starts(
    image_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(*_: object) -> None:
        raise AssertionError("Ray is started")

    monkeypatch.setattr("cluster.connect.connect", start)
    monkeypatch.chdir(tmp_path)
    images, done = str(image_folder()), Path("runs", "done")
    pretrain = ("pretrain", "--config", "demo", "--data.images", images)
    assert "error: data.images: photos: there is no such file" in refused(capsys, *PRETRAIN)
    said = refused(capsys, *pretrain, "--data.eval_images", "gone")
    assert "error: data.eval_images: gone: there is no such file" in said
    assert "resume: there is no run 'done'" in refused(capsys, *pretrain, "--name", "done", "--resume")
    done.mkdir(parents=True)
    (done / "config.yaml").touch()
    assert "name: a run 'done' exists in" in refused(capsys, *pretrain, "--name", "done")
    (done / "result.json").touch()
    said = refused(capsys, *pretrain, "--name", "done", "--resume")
    assert "is finished; give another name to train more" in said
    Path("file").touch()
    assert "storage: " in refused(capsys, *pretrain, "--storage", "file/runs")
    sweep = ("tune", "--config", "grocery", "--data.images", images, "--data.eval_images", images, "--name", "done")
    assert "name: a run 'done' exists in" in refused(capsys, *sweep)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["submit", *PRETRAIN, "--model.temperature", "-1"], "model.temperature"),
        (["submit", *PRETRAIN, "--address", "auto"], "address: jobs are submitted to a job server"),
        (["submit", *PRETRAIN, "--address", "http://127.0.0.1:9"], "http://127.0.0.1:9 does not take the job"),
        ([*PRETRAIN, "--address", "http://127.0.0.1:9"], "http://127.0.0.1:9 does not take the job"),
        ([*PRETRAIN, "--address", "ray://127.0.0.1:9"], "no Ray cluster answers at ray://127.0.0.1:9"),
        (["submit", *PRETRAIN, "--tracking.uri=http://me:secret@mlflow:5000"], "MLFLOW_TRACKING_PASSWORD"),
        (["submit", "leave"], "submit: leave does not need a cluster"),
        (["submit", "search", "embeddings", "--image", "a.jpg"], "submit: search does not need a cluster"),
        (["leave", "--within", "0"], "within must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_submitted_is_refused_here(
    arguments: list[str], names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert names in refused(capsys, *arguments)


@pytest.mark.parametrize("variable", ["RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"])
def test_a_job_goes_to_the_server_that_is_named(
    variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray's own client would follow its variables, and tell nobody."""
    monkeypatch.setenv(variable, "http://127.0.0.1:10")
    said = refused(capsys, "submit", *PRETRAIN, "--address", "http://127.0.0.1:9")
    assert "Failed to connect to Ray at address: http://127.0.0.1:9" in said
    assert os.environ[variable] == "http://127.0.0.1:10"


def test_leave_needs_a_cluster(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Else the tests' own Ray would be told to leave."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    said = refused(capsys, "leave", "--address", "127.0.0.1:9")
    assert said.startswith("lodisc: error: address: no Ray cluster answers at 127.0.0.1:9")


def test_submit_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert "usage: lodisc submit COMMAND" in printed(capsys, "submit", "--help")
    assert "    submit " in printed(capsys, "--help")


def test_doctor_takes_what_pretrain_takes_and_needs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert "data: null" in printed(capsys, "doctor", "--print_config")
    ours = printed(capsys, "doctor", *PRETRAIN[1:], "--print_config")
    assert ours == printed(capsys, *PRETRAIN, "--print_config")


def test_a_sweep_reads_back_as_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, *TUNE, "--trials", "3", "--print_config")
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    assert printed(capsys, "tune", "--config", str(path), "--print_config") == text
    assert "model.temperature:\n    log:\n    - 0.05" in text and "trials: 3" in text


def test_the_report_of_a_sweep_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, "tune", "report", "mine", "--storage", str(tmp_path))
    assert "storage: there is no MLflow store in" in error


def test_a_misspelt_field_of_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model: {temprature: 0.1}\n")
    assert "model.temprature" in refused(capsys, "pretrain", "--config", str(path), "--data.images", "photos")


def test_only_what_the_user_can_put_right_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, function in (("unlucky", "fail_with_value_error"), ("faulty", "fail_with_runtime_error")):
        command = COMMANDS["pretrain"].__class__(
            "pipelines.run.config:PretrainConfig", f"{__name__}:{function}", "fail", uses_ray=False
        )
        monkeypatch.setitem(COMMANDS, name, command)
    assert "seed 13 brings bad luck" in refused(capsys, "unlucky", "--data.images", "x", "--seed", "13")
    with pytest.raises(RuntimeError, match="a fault of ours"):
        main(["faulty", "--data.images", "x"])


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from cluster.cli import build_parser; build_parser([]); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


@pytest.mark.slow
def test_bad_options_are_refused_before_ray_starts(tmp_path: Path) -> None:
    """Ray leaves its token in the home when it starts."""
    command = [sys.executable, "-m", "cluster.cli", *PRETRAIN, "--optim.epochs", "0"]
    environment = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "lodisc: error: optim.epochs must be at least 1, got 0\n")
    assert not (tmp_path / ".ray").exists()


def test_switches_need_no_value(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, *PRETRAIN, "--name", "mine", "--resume", "--print_config")
    assert "resume: true" in text and not PretrainConfig.resume


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "list.txt"),
            "list.txt: No such file or directory",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/data/a"),
            "/data/a: Permission denied; ask for the right",
        ),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), "a/b: Not a directory; correct the name"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "a"), "a: Is a directory; name a file"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; make room"),
        (OSError(errno.EROFS, "Read-only file system", "/a"), "/a: Read-only file system; ask for the right"),
        (RayTaskError("read", "Traceback", PermissionError(errno.EACCES, "Denied", "/a")), "/a: Denied; ask for"),
        (OutOfMemoryError("Task was killed"), "OutOfMemoryError: Task was killed"),
        (WorkersFailedError("the workers failed: no luck"), "the workers failed: no luck"),
    ],
)
def test_what_is_wrong_with_files_and_machine_is_told_in_one_line(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*values: Any) -> None:
        raise error

    monkeypatch.setattr(cli, "run", fail)
    said = refused(capsys, *PRETRAIN)
    assert said.startswith(f"lodisc: error: {told}") and said.count("\n") == 1


def test_an_error_of_no_file_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*values: Any) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(cli, "run", fail)
    with pytest.raises(BrokenPipeError):
        main(PRETRAIN)
