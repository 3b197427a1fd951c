"""Have a Python process write down, 50 times a second, what it does; Python imports this at start from PYTHONPATH.

Where the variable STARTUP_SAMPLES names a folder, a file in it named by the process id gets JSON lines: {"time",
"command"}, then {"time", "thread": 0 for the main one, "stack": functions outermost first} where a stack differs from
the last, and twice a second {"time", "cpu": seconds, "title", "torch": whether it is imported}.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time

PAUSE = 0.02


def _sample(folder: str) -> None:
    main, own = threading.main_thread().ident, threading.get_ident()
    last: dict[int, list[str]] = {}
    with open(f"{folder}/{os.getpid()}.jsonl", "a", buffering=1) as file:

        def write(**entry: object) -> None:
            file.write(json.dumps(entry) + "\n")

        write(time=time.time(), command=sys.orig_argv)
        for number in range(10**9):
            now = time.time()
            for thread, frame in sys._current_frames().items():
                stack = [] if thread == own else _functions(frame)
                if stack and last.get(thread) != stack:
                    last[thread] = stack
                    write(time=now, thread=0 if thread == main else thread, stack=stack)
            if number % 25 == 0:
                with open("/proc/self/cmdline", "rb") as title:
                    about = title.read().replace(b"\0", b" ").decode(errors="replace").strip()
                write(time=now, cpu=time.process_time(), title=about, torch="torch" in sys.modules)
            time.sleep(PAUSE)


def _functions(frame: object) -> list[str]:
    found = []
    while frame is not None:
        found.append(frame.f_code.co_qualname)  # type: ignore[attr-defined]
        frame = frame.f_back  # type: ignore[attr-defined]
    return found[::-1]


if "STARTUP_SAMPLES" in os.environ:
    threading.Thread(target=_sample, args=[os.environ["STARTUP_SAMPLES"]], daemon=True).start()
