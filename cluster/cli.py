"""The `lodisc` console command. A subcommand is a config dataclass, the function that takes it, and a line of help."""

from __future__ import annotations

import argparse
import errno
import gc
import os
import sys
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from pkgutil import resolve_name
from typing import Any, NoReturn

from docstring_parser import parse_from_object
from jsonargparse import ActionConfigFile, ActionYesNo, ArgumentParser, set_parsing_settings

from cluster import surroundings
from lodisc import __version__


@dataclass(frozen=True)
class Command:
    """A subcommand. Names stand for the objects, so that asking one command for help does not import torch for all.

    Attributes:
        config: `module:Class` of the dataclass whose fields are the options.
        function: `module:function` that takes the config.
        help: one line.
        positional: fields given by place instead of by name.
        recipes: the package with the recipes that `--config` takes beside YAML files; None has no `--config`.
        uses_ray: whether the function runs on Ray; where the config has a property of that name, it may spare that.
        refuse: `module:function` that refuses the config by what is on disk, before Ray starts; empty for none.
        imports: what the function needs that takes seconds to import, to be had while Ray starts.
    """

    config: str
    function: str
    help: str
    positional: tuple[str, ...] = ()
    recipes: str | None = None
    uses_ray: bool = True
    refuse: str = ""
    imports: str = "lodisc.model"


COMMANDS = {
    "prepare": Command(
        "pipelines.data.options:PrepareConfig",
        "pipelines.data.prepare:prepare",
        "check every image of a source and write them as Parquet shards",
        positional=("source", "destination"),
        imports="lodisc.views",
    ),
    "pretrain": Command(
        "pipelines.run.config:PretrainConfig",
        "pipelines.training.pretrain:pretrain",
        "pretrain an encoder on images without labels",
        recipes="pipelines",
        refuse="pipelines.training.options:refuse_early",
    ),
    "tune": Command(
        "tuning.config:SweepConfig",
        "tuning.sweep:tune",
        "search for the best values of a recipe's fields",
        recipes="tuning",
        refuse="pipelines.run.folder:require_free",
    ),
    # Also as two words, which jsonargparse cannot take: see `main`.
    "tune-report": Command(
        "tuning.config:ReportConfig",
        "tuning.report:report",
        "print what a sweep found, from MLflow alone",
        positional=("sweep",),
        uses_ray=False,
    ),
    "evaluate": Command(
        "pipelines.evaluation.options:EvaluateConfig",
        "pipelines.evaluation.evaluate:evaluate",
        "say what a checkpoint's features are good for",
        positional=("checkpoint",),
    ),
    "embed": Command(
        "pipelines.takeaway.options:EmbedConfig",
        "pipelines.takeaway.embed:embed",
        "write a checkpoint's features of every image as Parquet files",
        positional=("checkpoint",),
    ),
    "search": Command(
        "pipelines.takeaway.options:SearchConfig",
        "pipelines.takeaway.search:search",
        "find the embedded images that are most like others",
        positional=("embeddings",),
        uses_ray=False,
    ),
    "finetune": Command(
        "pipelines.training.options:FinetuneConfig",
        "pipelines.training.finetune:finetune",
        "train a classifier with labels on a checkpoint's encoder, or all of it",
        positional=("checkpoint",),
        refuse="pipelines.run.folder:require_free",
    ),
    "export": Command(
        "pipelines.takeaway.options:ExportConfig",
        "pipelines.takeaway.export:export",
        "write a checkpoint's encoder as timm, torchvision, transformers, ONNX or MLflow load it",
        positional=("checkpoint",),
        uses_ray=False,
    ),
    "show": Command(
        "pipelines.takeaway.options:ShowConfig",
        "pipelines.takeaway.show:show",
        "draw what a checkpoint's encoder looks at",
        positional=("checkpoint",),
    ),
    "report": Command(
        "pipelines.takeaway.options:ReportConfig",
        "pipelines.takeaway.report:report",
        "write all there is to say of a run to one HTML page",
        positional=("run",),
    ),
    "demo": Command(
        "pipelines.demo.options:DemoConfig",
        "pipelines.demo.demo:demo",
        "make images, pretrain on them, and compare with MoCo v3 and no training",
    ),
    "doctor": Command(
        "cluster.options:DoctorConfig",
        "cluster.doctor:doctor",
        "check that a cluster has what a run needs; takes the options of pretrain",
        recipes="pipelines",
        imports="lodisc.views",
    ),
    "leave": Command(
        "cluster.options:LeaveConfig",
        "cluster.leave:leave",
        "announce that this node will be taken, so that runs save a checkpoint and go on elsewhere",
        uses_ray=False,
    ),
    "ui": Command(
        "pipelines.tracking.options:UIConfig",
        "pipelines.tracking.ui:ui",
        "open MLflow on the runs",
        uses_ray=False,
    ),
}


# Before another command; not one itself.
SUBMIT = "submit"
SUBMIT_HELP = "run another command as a job of a Ray cluster, which goes on without this machine"
CLIENT = "ray://"
JOB_SERVER = ("http://", "https://")
TERMINATED = 143  # as a shell says it of SIGTERM
# What the user can do about a file or folder that the system refuses.
ELSEWHERE = "ask for the right to it, or name another one"
ROOM = "make room, or name another place"
CURES = {
    errno.ENOENT: "correct the name",
    errno.ENOTDIR: "correct the name: a file is where a folder is expected",
    errno.EISDIR: "name a file",
    errno.EEXIST: "name another one",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EACCES: ELSEWHERE,
    errno.EPERM: ELSEWHERE,
    errno.EROFS: ELSEWHERE,
    errno.ENOSPC: ROOM,
    errno.EDQUOT: ROOM,
}
# Errors of Ray and torch that tell of the machine.
OF_THE_MACHINE = ("OutOfMemoryError", "OutOfDiskError", "ObjectStoreFullError")


class ConfigFile(ActionConfigFile):
    """`--config`, which takes the name of a shipped recipe where a file is expected."""

    def __init__(self, package: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.package = package

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        from pipelines.run.config import recipe_path

        super().__call__(parser, cfg, recipe_path(values, self.package), option_string)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 2 for what the user can put right, said in one line."""
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    submitted = arguments[0] == SUBMIT and len(arguments) > 1 and not arguments[1].startswith("-")
    arguments = arguments[submitted:]
    if "-".join(arguments[:2]) in COMMANDS:
        arguments[:2] = ["-".join(arguments[:2])]
    set_parsing_settings(add_print_completion_argument=True)
    try:
        parser = build_parser(COMMANDS if arguments[0] == "--print_completion" else arguments[:1])
        parsed = parser.instantiate(parser.parse_args(arguments))
        return run(COMMANDS[parsed.command], dict(vars(parsed[parsed.command])), arguments, submitted)
    except KeyboardInterrupt:
        print("lodisc: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        from pipelines.run.causes import CalledAwayError

        if isinstance(error, CalledAwayError):
            print(f"lodisc: {error}; --resume continues it", file=sys.stderr)
            return TERMINATED
        told = what_to_put_right(error)
        if told is None:
            raise
        listed = f"; lodisc {arguments[0]} --help lists its options" if "unrecognized arguments" in told else ""
        print(f"lodisc: error: {told}{listed}", file=sys.stderr)
        return 2


def what_to_put_right(error: Exception) -> str | None:
    """Return in one line what a user can put right, None where the fault is ours."""
    from pipelines.run.causes import NonFiniteLossError, WorkersFailedError, explain, innermost

    cause = innermost(error)
    if isinstance(cause, OSError) and cause.errno in CURES:
        return of_file(cause)
    if isinstance(cause, (argparse.ArgumentError, ValueError, WorkersFailedError, NonFiniteLossError)):
        return str(cause)
    return explain(error) if type(cause).__name__ in OF_THE_MACHINE else None


def of_file(error: OSError) -> str:
    """Return which file or folder the system refuses, why, and what to do, in one line."""
    name = f"{error.filename}: " if error.filename is not None else ""
    return f"{name}{error.strerror}; {CURES[error.errno or 0]}"


def build_parser(complete: Collection[str]) -> ArgumentParser:
    """Return the parser, with the options of those subcommands that are named in `complete`."""
    parser = ArgumentParser(
        prog="lodisc",
        description="Self-supervised pretraining for fine-grained images, on Ray.",
        version=__version__,
        exit_on_error=False,
        allow_abbrev=False,
    )
    subcommands = parser.add_subcommands(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        places = " ".join(field.upper() for field in command.positional)
        subparser = ArgumentParser(
            usage=f"lodisc {name.replace('-', ' ')} {places} [options]".replace("  ", " "),
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            allow_abbrev=False,
        )
        if name in complete:
            add_options(subparser, command)
        subcommands.add_subcommand(name, subparser, help=command.help)
    usage = f"lodisc {SUBMIT} COMMAND [options of the command]"
    submit = ArgumentParser(usage=usage, description=f"{SUBMIT_HELP[0].upper()}{SUBMIT_HELP[1:]}.")
    subcommands.add_subcommand(SUBMIT, submit, help=SUBMIT_HELP)
    return parser


def add_options(parser: ArgumentParser, command: Command) -> None:
    """Add the fields of a command's config, and what the command line adds to them."""
    config = resolve_name(command.config)
    about = {field.arg_name: field.description for field in parse_from_object(config).params}
    switches = {field.name: field.default for field in fields(config) if isinstance(field.default, bool)}
    for name in command.positional:
        parser.add_argument(name, type=str, metavar=name.upper(), help=about.get(name))
    for name, default in switches.items():
        parser.add_argument(f"--{name}", action=ActionYesNo, default=default, help=about.get(name))
    several = {field.name for field in fields(config) if field.type == "list[str]"}
    for name in several:
        parser.add_argument(f"--{name}", type=str, nargs="+", required=True, metavar="FILE", help=about.get(name))
    letters = {field.name: field.default for field in fields(config) if len(field.name) == 1}
    for letter, number in letters.items():
        parser.add_argument(f"-{letter}", f"--{letter}", type=int, default=number, help=about.get(letter))
    parser.add_class_arguments(config, skip={*command.positional, *switches, *several, *letters})
    if command.recipes:
        recipe_help = "YAML file, or name of a shipped recipe; options after it win."
        parser.add_argument(
            "--config", action=ConfigFile, package=command.recipes, metavar="FILE_OR_RECIPE", help=recipe_help
        )
    if command.uses_ray:
        # Suppressed where not given, so that --print_config shows the run and not the machine.
        address_help = (
            "Ray cluster: auto or HOST:PORT on a node of it; from elsewhere ray://HOST:10001, whose head then runs the "
            "command while this machine listens, or its job server http://HOST:8265, which needs nobody to listen. "
            "Without it a Ray starts on this machine."
        )
        folder_help = "With ray:// and job servers, the folder of the cluster to run in; by default the one we are in."
        parser.add_argument("--address", type=str, default=argparse.SUPPRESS, help=address_help)
        parser.add_argument("--job_folder", type=str, default=argparse.SUPPRESS, help=folder_help)


def run(command: Command, values: dict[str, Any], arguments: Sequence[str], submitted: bool) -> int:
    """Make the config of parsed values, which checks them, and only then start Ray and call the function.

    Where another machine drives the command, that makes the config: what the values name is there and not here.

    Args:
        command: what to run.
        values: of its options, parsed.
        arguments: as they were given, `submit` left out.
        submitted: whether it was there.

    Returns:
        The exit code.
    """
    if submitted and not command.uses_ray:
        raise ValueError(f"{SUBMIT}: {arguments[0]} does not need a cluster; run it where its files are")
    surroundings.prepare()
    values = {name: at_home(value) for name, value in values.items()}
    values.pop("config", None)
    # A command that finds its cluster by itself has an address among its own options.
    address = values.pop("address", None) if command.uses_ray else None
    usual = os.environ.get("RAY_ADDRESS", "")
    if address is None and usual.startswith(JOB_SERVER if submitted else ""):
        address = usual or None
    folder = values.pop("job_folder", None)
    if folder and not (submitted or (address or "").startswith((CLIENT, *JOB_SERVER))):
        raise ValueError("job_folder: the command runs here and in this folder; it is for ray:// and job servers")
    if submitted or (address or "").startswith(JOB_SERVER):
        from cluster.jobs import submit

        return submit(arguments, address, folder)
    if address is not None and address.startswith(CLIENT):
        from cluster.ray_client import run_there

        return run_there(arguments, address, folder)
    config = resolve_name(command.config)(**values)
    if not (command.uses_ray and getattr(config, "uses_ray", True)):
        resolve_name(command.function)(config)
        return 0
    if command.refuse:
        resolve_name(command.refuse)(config)
    from cluster.connect import connect

    # torch and timm: nothing of Ray's, as two threads should not import the same.
    threading.Thread(target=import_module, args=[command.imports], daemon=True).start()
    with connect(address):
        resolve_name(command.function)(config)
    return 0


def at_home(value: Any) -> Any:
    """Return a value with `~` written out, which shells leave in `--storage=~/runs`, and YAML files always."""
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def command() -> NoReturn:
    """Be the `lodisc` command: run the command line, and end the process with its exit code."""
    code = main()
    # Or Python looks through the thousands of modules of torch and MLflow for garbage before it ends, for seconds.
    gc.freeze()
    sys.exit(code)


if __name__ == "__main__":
    command()
