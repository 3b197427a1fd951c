"""What made a run fail: the error at the bottom of those that Ray wraps around it, in one line, with what to do.

Errors are told apart by their names. So this imports neither Ray nor torch, and an error of which Ray has kept but the
text of a traceback is treated as one that came whole.
"""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Mapping

LONGEST = 300  # characters of an error's own message
NAMED_PROGRAMS = 3  # that take most of a node's memory

# What Ray lays around the error of somebody else.
WRAPPERS = {
    "ray.RayTaskError",
    "ray.UserCodeException",
    "ray.SystemException",
    "ray.WorkerGroupError",
    "ray.ControllerError",
    "ray.UserExceptionWithTraceback",
}
LOST = {
    "ray.RayActorError",
    "ray.NodeDiedError",
    "ray.WorkerCrashedError",
    "ray.LocalRayletDiedError",
    "ray.OutOfMemoryError",
}
# The same again, however often it is tried. All else may be a machine's, a network's or a moment's: errors of Ray, of
# connections and time-outs, a disk that is full, and RuntimeError, which torch raises for whatever befalls a device.
HOPELESS = {
    "TypeError",
    "ValueError",  # among them ImageError
    "AttributeError",
    "NameError",
    "LookupError",
    "ImportError",
    "SyntaxError",
    "AssertionError",
    "ArithmeticError",
    "NotImplementedError",
    "PermissionError",
    "FileNotFoundError",
    "FileExistsError",
    "NotADirectoryError",
    "IsADirectoryError",
    "psutil.AccessDenied",
}
# Of whoever has done steps, it was another program that took the memory; of others, their own size.
TOO_LARGE = {"MemoryError", "torch.OutOfMemoryError"}

SMALLER = "lower the batch size (optim.batch_size)"
ALLOW = "let the user that Ray runs as do this, on every node"
ROOM = "make room on that disk"
LOOK = "see what its node's kernel log says: out of memory, it ends processes by SIGKILL; then " + SMALLER
ADVICE = {
    "ENOSPC": ROOM,
    "EDQUOT": "make room within that disk's quota",
    "EMFILE": "raise the limit of open files (ulimit -n)",
    "PermissionError": ALLOW,
    "psutil.AccessDenied": ALLOW,
    "FileNotFoundError": "every node must have it under that path; give it as an absolute path on a shared storage",
    "ConnectionError": "see whether that server is up and every node reaches it",
    "TimeoutError": "see whether that server is up and every node reaches it",
    "MemoryError": f"{SMALLER}, or stop other programs on that node",
    "torch.OutOfMemoryError": f"{SMALLER}, or stop other programs on that GPU",
    "pipelines.ImageError": "run lodisc prepare on the images, which sets such files aside",
    "ray.OutOfMemoryError": f"stop other programs there, {SMALLER}, or give Ray a smaller object store",
    "ray.ObjectStoreFullError": "give Ray a larger object store, or make images smaller (lodisc prepare --max_side)",
    "ray.OutOfDiskError": "make room on the disk where Ray keeps /tmp/ray",
    "ray.NodeDiedError": "see whether that machine is up",
    "ray.RayActorError": LOOK,
    "ray.WorkerCrashedError": LOOK,
}

COLOUR = re.compile(r"\x1b\[[\d;]*m")
NAMED = re.compile(r"([A-Za-z_][\w.<>]*)(?:\(\w+\))?(?:: (.*))?$")
OF_SYSTEM = re.compile(r"\[Errno (\d+)\] (.*?)(?:: ['\"](.*)['\"])?$")
NODE = re.compile(r"\bip[:=] ?([\d.]+|[\da-f:]*:[\da-f:]+)", re.IGNORECASE)
USED = re.compile(r"was ([\d.]+ ?\w+) used / ([\d.]+ ?\w+) limit")
ALLOWED = re.compile(r"threshold of \d+B \(([\d.]+%) of")
PROGRAM = re.compile(r"^\d+\t([\d.]+)\t(.+)$", re.MULTILINE)
# What workers say whose neighbour is gone.
ECHO = re.compile(r"gloo|nccl|connection (closed|reset)|broken pipe", re.IGNORECASE)
# Where Ray Data adds its advice to programmers.
ADDED = re.compile(r"\s*Failed to \w.* after \d+/\d+ attempts .*", re.DOTALL)


class WorkersFailedError(RuntimeError):
    """A run has ended because its workers failed; the message says in one line why, and what to do."""


class NonFiniteLossError(RuntimeError):
    """A run has ended because its loss or the gradient stopped being a number."""


class CalledAwayError(RuntimeError):
    """A run was told to end, did so at a checkpoint, and can be resumed."""


def innermost(error: BaseException) -> BaseException:
    """Return the error of user or machine within those that Ray wraps around it.

    An error that was raised `from` another one is not gone through: whoever raised it had more to say.
    """
    while (inner := _wrapped(error)) is not None:
        error = inner
    return error


def explain(error: BaseException) -> str:
    """Return in one line the innermost cause of an error, its node where that is known, and what to do."""
    advice = next((ADVICE[kind] for kind in _kinds(innermost(error)) if kind in ADVICE), None)
    return f"{name_cause(error)}; {advice}" if advice else name_cause(error)


def name_cause(error: BaseException) -> str:
    """Return in one line the innermost cause of an error, and its node where that is known."""
    cause = innermost(error)
    message = _message(cause)
    name = type(cause).__name__
    node = _node(error)
    return "".join(
        [
            _worker(error),
            f"{name}: {message}" if message else name,
            f" on node {node}" if node and node not in message else "",
        ]
    )


def may_help(error: BaseException, began: bool = True) -> bool:
    """Say whether to try again from the last checkpoint may help.

    Args:
        error: as Ray raised it.
        began: whether the run has finished steps before.
    """
    kinds = set(_kinds(innermost(error)))
    if kinds & TOO_LARGE:
        return began
    return is_of_ray(innermost(error)) or not kinds & HOPELESS


def is_of_ray(error: BaseException) -> bool:
    """Say whether an error came from Ray, wrapped around another one or of its own."""
    return any(kind.startswith("ray.") for kind in _kinds(error))


def _kinds(error: BaseException) -> list[str]:
    """Return the names of an error's classes, the most special first: bare of Python's own, `package.Name` of others.

    Before them stands what the system calls it, as ENOSPC.
    """
    code = errno.errorcode.get(error.errno or 0) if isinstance(error, OSError) else None
    classes = [(cls.__module__.split(".")[0], cls.__name__) for cls in type(error).__mro__]
    names = [name if package == "builtins" else f"{package}.{name}" for package, name in classes]
    return [code, *names] if code else names


def _wrapped(error: BaseException) -> BaseException | None:
    """Return what an error is wrapped around, None where it stands for itself."""
    kinds = set(_kinds(error))
    if kinds & WRAPPERS:
        for name in ("controller_failure", "_base_exc"):
            if isinstance(inner := getattr(error, name, None), BaseException):
                return inner
        if getattr(error, "worker_failures", None):
            return _first_failure(error)[1]
        # Pickled on its way here, an error has lost what it was raised from.
        if "ray.UserCodeException" in kinds or "ray.RayTaskError" in kinds:
            cause = getattr(error, "cause", None)
            whole = isinstance(cause, BaseException) and type(cause).__name__ not in ("UserCodeException", "RayError")
            return (cause if whole else None) or _told(str(error)) or error.__cause__
        return error.__cause__ or error.__context__
    return _told(str(error)) if "\n  File " in str(error) else None


def _first_failure(error: BaseException) -> tuple[int, BaseException]:
    """Return the rank and the error of the worker that failed first: when one dies, others fail for want of it."""
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", {})

    def order(rank: int) -> tuple[bool, bool, int]:
        cause = innermost(failures[rank])
        return not LOST.intersection(_kinds(cause)), bool(ECHO.search(str(cause))), rank

    first = min(failures, key=order)
    return first, failures[first]


def _told(text: str) -> BaseException | None:
    """Make an error of the text of tracebacks: the last one in it that is none of Ray's wrappers.

    Python writes causes first, and Ray a task's traceback after the line that says that the task failed.
    """
    lines = COLOUR.sub("", text).splitlines()
    found = None
    for before, line in zip(["", *lines], lines, strict=False):
        match = NAMED.match(line) if before.startswith((" ", "Traceback", "ray::")) else None
        if match and not any(wrapper.endswith(f".{match[1].split('.')[-1]}") for wrapper in WRAPPERS):
            found = _remade(match[1], match[2] or "")
    return found


def _remade(name: str, message: str) -> BaseException:
    """Return an error of a class that a traceback names, or of one like it."""
    system = OF_SYSTEM.match(message)
    if system:
        return OSError(int(system[1]), system[2], system[3])
    module, _, short = name.rpartition(".")
    base = getattr(sys.modules.get(module or "builtins"), short, Exception)
    if not (isinstance(base, type) and issubclass(base, BaseException)):
        base = Exception
    # What its own constructor takes is not known.
    own = {"__init__": lambda self, *args: None, "__str__": lambda self: message, "__module__": module or "builtins"}
    remade: BaseException = type(short, (base,), own)(message)
    return remade


def _message(error: BaseException) -> str:
    """Return what an error says, in one line."""
    kinds, text = _kinds(error), COLOUR.sub("", str(error)).strip()
    if "ray.OutOfMemoryError" in kinds:
        return _memory(text)
    if is_of_ray(error):
        text = text.split("\n")[0]
    # torch and gloo go on with what only their programmers can do.
    elif kinds[0] == "RuntimeError":
        text = re.split(r"(?<=[.!]) ", text)[0]
    text = " ".join(ADDED.sub("", text).split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _memory(text: str) -> str:
    """Return what Ray's monitor of memory reports in some fifty lines."""
    node, used, allowed = NODE.search(text), USED.search(text), ALLOWED.search(text)
    if not (node and used):
        return text.split("\n")[0][:LONGEST]
    limit = f", and Ray allows {allowed[1]}" if allowed else ""
    programs = [f"{_program(command)} {size} GB" for size, command in PROGRAM.findall(text)[:NAMED_PROGRAMS]]
    most = f"; most is taken by {', '.join(programs)}" if programs else ""
    return f"{used[1]} of {used[2]} of the memory of node {node[1]} are used{limit}{most}"


def _program(command: str) -> str:
    """Return a command line's beginning."""
    first, *others = command.split()
    words = [first.rsplit("/", 1)[-1] if first.startswith("/") else first, *others]
    return " ".join(words)[:40].strip()


def _node(error: BaseException) -> str | None:
    """Return the address of the node where an error arose, as far as what Ray wrapped around it says so."""
    found = None
    current: BaseException | None = error
    while current is not None:
        # The inner one's stands last, and what wraps several workers names all of theirs.
        named = NODE.findall("" if hasattr(current, "worker_failures") else str(current))
        found = named[-1] if named else found
        current = _wrapped(current)
    return found


def _worker(error: BaseException) -> str:
    return f"worker {_first_failure(error)[0]}: " if getattr(error, "worker_failures", None) else ""
