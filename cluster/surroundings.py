"""What a machine gives to a process, made fit for Ray and the libraries: its user, home, folders, proxies and CPUs.

Variables are set, not told to one library after another: every process that is started from here then has them. Nothing
of Ray or torch is imported, as some must stand before these read them. A value that the user has set stays.
"""

from __future__ import annotations

import getpass
import os
import secrets
import socket
import stat
import zlib
from contextlib import suppress
from pathlib import Path

from pipelines.run.files import nearest_folder, try_writing

# Linux takes 107 bytes for the path of a socket. Ray's longest is /session_2026-11-28_12-19-33_839342_4194304/sockets/
# dash_MetricsHead below the folder.
LONGEST_FOLDER = 107 - 68
CGROUP = Path("/sys/fs/cgroup")


def prepare() -> None:
    """Prepare this process and all that it starts; again is as good as once.

    Raises:
        ValueError: there is no folder to keep anything in.
    """
    name_user()
    find_temporary()
    find_home()
    keep_working_folder()
    spare_proxy()


def name_user() -> None:
    """Give the user a name where the machine knows but a number, as in containers: MLflow and torch ask for one."""
    try:
        getpass.getuser()
    except (KeyError, OSError):  # OSError from Python 3.13 on
        os.environ["LOGNAME"] = os.environ["USER"] = str(os.getuid())


def find_temporary() -> None:
    """Have a folder for temporary files that can be written, and has a short path: sockets lie in it, not only Ray's.

    One of a long path gets a short one more, by a link: what fills it is to lie on the disk that the user named.
    """
    place = os.environ.get("TMPDIR")
    if place is None:
        return
    if not (os.path.isabs(place) and os.path.isdir(place) and _can_be_written(Path(place))):
        del os.environ["TMPDIR"]  # as Python does by itself: the machine's own is left
    elif not _takes_sockets(Path(place, "ray")):
        link = own_folder() / f"{zlib.crc32(os.fsencode(place)):08x}"
        with suppress(FileExistsError):
            link.symlink_to(place)
        os.environ["TMPDIR"] = str(link)


def find_home() -> None:
    """Have a home, and caches beside it where it cannot be written.

    A home that can only be read stays, as credentials and weights of encoders may lie in it.
    """
    home = os.environ.get("HOME") or os.path.expanduser("~")
    if not os.path.isabs(home):  # neither a variable nor an entry for the user
        home = str(own_folder())
    os.environ["HOME"] = home  # Ray asks for nothing but the variable
    if not _can_be_written(Path(os.environ.get("XDG_CONFIG_HOME") or f"{home}/.config", "matplotlib")):
        os.environ.setdefault("MPLCONFIGDIR", str(own_folder() / "matplotlib"))
    if not os.path.isdir(f"{home}/.cache") and not _can_be_written(Path(home)):
        os.environ.setdefault("XDG_CACHE_HOME", str(own_folder() / "cache"))


def keep_working_folder() -> None:
    """Keep Ray from packing the folder that we are in, images and all: below `uv run` it would, for other machines.

    Ray reads this when it is imported. Nodes of clusters have this package installed.
    """
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")


def spare_proxy() -> None:
    """Keep what goes to this machine from its proxy, which would look for it elsewhere: Ray's dashboard, an MLflow."""
    given = [name for variable in ("no_proxy", "NO_PROXY") for name in os.environ.get(variable, "").split(",") if name]
    proxies = {name for name, value in os.environ.items() if name.lower().endswith("_proxy") and value}
    if proxies <= {"no_proxy", "NO_PROXY"} or "*" in given:
        return
    everyone = ",".join(dict.fromkeys([*given, "localhost", socket.gethostname(), *_own_addresses()]))
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = everyone


def _own_addresses() -> list[str]:
    import psutil

    entries = [entry for interface in psutil.net_if_addrs().values() for entry in interface]
    return sorted(entry.address.split("%")[0] for entry in entries if entry.family in (socket.AF_INET, socket.AF_INET6))


def keep_token() -> None:
    """Have a token for a Ray of this machine where the home, in which Ray keeps one, does not take it."""
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    file = Path(os.environ["HOME"], ".ray", "auth_token")
    with suppress(OSError):
        if os.access(file, os.R_OK) or (not file.exists() and _can_be_written(file)):
            return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def ray_folder() -> str | None:
    """Return where a Ray of this machine is to keep its sockets and logs; None is where it does by itself.

    That is of no use where another user made it for himself, or where its path is too long for sockets.

    Raises:
        ValueError: no folder will do.
    """
    usual = Path(os.environ.get("RAY_TMPDIR", os.environ.get("TMPDIR", "/tmp")), "ray")
    if usual.is_absolute() and _takes_sockets(usual) and _can_be_written(usual / "session"):
        return None
    return str(own_folder() / "ray")


def own_folder() -> Path:
    """Return a folder that is this user's alone and stays, made where it is missing; short, as sockets lie in it.

    Raises:
        ValueError: none can be made.
    """
    places = [os.environ.get("TMPDIR", ""), "/tmp", "/var/tmp", "/dev/shm"]
    for folder in (Path(place, f"lodisc-{os.getuid()}") for place in places if os.path.isabs(place)):
        if _takes_sockets(folder / "ray"):
            with suppress(OSError):
                folder.mkdir(mode=0o700, exist_ok=True)
                if _is_ours(folder) and _can_be_written(folder):
                    return folder
    raise ValueError(
        f"TMPDIR: none of {', '.join(filter(None, places))} takes a file; Ray needs a folder for its sockets and logs, "
        f"with a path of at most {LONGEST_FOLDER - 4} characters. Make room, or name another one by TMPDIR"
    )


def _takes_sockets(folder: Path) -> bool:
    return len(os.fsencode(folder)) <= LONGEST_FOLDER


def _is_ours(folder: Path) -> bool:
    """Whether nobody else can write to a folder, or has put it there to be written to."""
    about = folder.lstat()
    return stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid() and not about.st_mode & 0o077


def _can_be_written(path: Path) -> bool:
    try:
        try_writing(nearest_folder(path), size=4096)
    except OSError:
        return False
    return True


def count_cpus() -> int:
    """Return how many CPUs a Ray of this machine counts: those that this process may use, and two at the least.

    Ray itself overlooks what `taskset` and SLURM leave to a process, and counts none in a container that has less than
    one. Two are places for work, not cores: a run needs one for its worker and one that draws views.
    """
    return max(2, int(min(len(os.sched_getaffinity(0)), _quota())))


def _quota() -> float:
    """Return how many CPUs' time the container gives, as the kernel's second or first version of cgroups tells."""
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with suppress(OSError, ValueError):  # no such file; "max", which is no limit
            quota, period = (int(word) for file in files for word in (CGROUP / file).read_text().split())
            return quota / period if quota > 0 else float("inf")
    return float("inf")
