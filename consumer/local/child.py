"""Child processes that end with this one, however that dies: workers for the demo and the benchmark."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from consumer.errors import Fatal
from consumer.local import supervisor

__all__ = ["Child", "worker"]

_GRACE_S = 30.0


class Child:
    """`python -m MODULE ARGUMENTS...` with its output in a file."""

    def __init__(self, module: str, arguments: Sequence[str], folder: Path, name: str) -> None:
        self.log_file = folder / f"{name}.log"
        command = [sys.executable, "-m", module, *arguments]
        self._supervisor = subprocess.Popen(
            [sys.executable, supervisor.__file__, str(_GRACE_S), str(folder), str(self.log_file), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us; we then end it in good order
        )
        assert self._supervisor.stdout is not None
        first = self._supervisor.stdout.readline().strip()
        if not first:
            raise Fatal(f"{module} did not start; its log is {self.log_file}")
        self.process = psutil.Process(int(first))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def require_alive(self) -> None:
        """Raises Fatal with the end of its log when it has ended by itself."""
        code = self._supervisor.poll()
        if code is not None:
            raise Fatal(f"the process ended with exit code {code}:\n{self.log_tail()}")

    def log_tail(self, lines: int = 15) -> str:
        try:
            return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])
        except OSError as error:
            return f"(no log: {error})"

    def cpu_s(self) -> float:
        """Processor seconds so far, user and system, all threads."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def rss_mib(self) -> float:
        """Resident memory now."""
        return float(self.process.memory_info().rss) / 2**20

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self.process.kill()
        self.stop()

    def stop(self) -> int:
        """SIGTERM, wait, SIGKILL after a deadline; returns the exit code.  Idempotent."""
        assert self._supervisor.stdin is not None and self._supervisor.stdout is not None
        self._supervisor.stdin.close()
        code = self._supervisor.wait()
        self._supervisor.stdout.close()
        return code


def worker(arguments: Sequence[str], folder: Path, name: str = "worker") -> Child:
    """`consumer run ARGUMENTS...`"""
    return Child("consumer", ["run", *arguments], folder, name)
