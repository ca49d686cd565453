"""Runs one command as a child and ends it when the process that started this one stops, however it dies.

Started by `broker.py` as a script of its own; needs nothing but the standard library. Standard input is a pipe
whose other end only the starter holds: end of file there means "stop". Standard output gets one line, the pid
of the child. The child gets TERM, then KILL after the grace time; its exit code becomes ours.

    python supervisor.py GRACE_S FOLDER_TO_REMOVE_IF_THE_STARTER_DIED LOG_FILE COMMAND...
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

POLL_S = 0.1
ORPHAN_GRACE_S = 5.0


def death_signal() -> Callable[[], None] | None:
    """Linux: what the child calls before it runs COMMAND, so that it ends even when this process is killed."""
    if sys.platform != "linux":
        return None
    import ctypes

    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(
        1, signal.SIGKILL
    )  # PR_SET_PDEATHSIG; bound to this thread, the only one we have


def wait_for_end(child: subprocess.Popen[bytes], starter: int) -> None:
    """Returns when the child has ended, or the starter closed the pipe or is gone."""
    while child.poll() is None and os.getppid() == starter:
        readable, _, _ = select.select([0], [], [], POLL_S)
        if readable and not os.read(0, 1024):
            return


def end(child: subprocess.Popen[bytes], starter: int, grace_s: float) -> None:
    """TERM to the child, KILL to its whole process group after the grace time, which is short without a starter."""
    begun = time.monotonic()
    if child.poll() is None:
        os.kill(child.pid, signal.SIGTERM)
        os.kill(child.pid, signal.SIGCONT)  # a stopped process would not see the TERM
    while child.poll() is None and time.monotonic() - begun < grace_s:
        if os.getppid() != starter:
            grace_s = min(grace_s, ORPHAN_GRACE_S)
        time.sleep(POLL_S / 2)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def main(grace_s: float, folder: str, log_file: str, command: list[str]) -> int:
    starter = os.getppid()
    signal.signal(
        signal.SIGTERM, lambda *_: os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    )  # as if the pipe closed
    with open(log_file, "ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=death_signal(),  # safe: this process has one thread
        )
    os.write(1, f"{child.pid}\n".encode())
    wait_for_end(child, starter)
    end(child, starter, grace_s)
    if os.getppid() != starter:
        shutil.rmtree(folder, ignore_errors=True)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]))
