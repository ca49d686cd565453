"""Worker processes for tests: start them, stop them in every way there is, read their logs.

    with Workers(tmp_path, bootstrap_servers=..., group_id=..., input_topics=..., output_topic=...) as workers:
        first = workers.start("tests.broker.tasks_for_tests:CheapTask", instance_name="a")
        first.wait_for("assigned")
        first.kill()

Keywords are settings of `consumer run`: `max_poll_interval_ms=6000` becomes `--max-poll-interval-ms 6000`.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from tests.waiting import wait_until

__all__ = ["READY", "ROOT", "WorkerProcess", "Workers"]

ROOT = Path(__file__).parents[2]
READY = "is ready on"
"""What a worker says when its model is loaded; it listens to signals by then."""


class WorkerProcess:
    """One `consumer run`.  Signals to one that has ended are errors: a test wants to know."""

    def __init__(
        self, number: int, instance_name: str, log_file: Path, process: subprocess.Popen[bytes]
    ) -> None:
        self.number = number
        self.instance_name = instance_name
        self.log_file = log_file
        self.process = process
        self.started = time.monotonic()

    def __repr__(self) -> str:
        return f"worker {self.number} ({self.instance_name or 'no name'}, pid {self.process.pid})"

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def log(self) -> str:
        """Everything it has written to stdout and stderr so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, text: str, timeout_s: float = 30.0, *, times: int = 1) -> str:
        """Waits until `text` stands in the log (`times` times); returns the log.  Fails when the worker ends first."""

        def found() -> str:
            log = self.log
            if log.count(text) >= times:
                return log
            if not self.running:
                pytest.fail(f"{self} ended with {self.process.returncode} before {text!r}:\n{self.log}")
            return ""

        return wait_until(found, timeout_s, lambda: f"{text!r} x {times} in the log of {self}:\n{self.log}")

    def signal(self, number: int) -> None:
        assert self.running, f"{self} has ended with {self.process.returncode}:\n{self.log}"
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self.process.wait(30)

    def pause(self) -> None:
        """SIGSTOP."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    def terminate(self) -> None:
        """SIGTERM, once it listens to that; does not wait for the end."""
        self.wait_for(READY)
        self.signal(signal.SIGTERM)

    def ended(self, timeout_s: float = 40.0) -> int:
        """Waits for its end; returns the exit code (-9 after SIGKILL)."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self} did not end within {timeout_s} s:\n{self.log}")


class Workers:
    """Starts worker processes with common `settings`; none outlives the `with` block.  Logs go to `folder`."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self._folder = folder
        self._settings = settings
        self._numbers = itertools.count(1)
        self.all: list[WorkerProcess] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.running:
            worker.process.send_signal(signal.SIGCONT)
            worker.process.kill()
            worker.process.wait(30)

    @property
    def running(self) -> list[WorkerProcess]:
        return [worker for worker in self.all if worker.running]

    def start(
        self, task: str, *, instance_name: str = "", options: Mapping[str, Any] | None = None, **settings: Any
    ) -> WorkerProcess:
        """A new process for `task`; `options` go to the task's constructor, `settings` outrank the common ones."""
        number = next(self._numbers)
        together = {"log_format": "pretty", **self._settings, **settings}
        if instance_name:
            together["instance_name"] = instance_name
        command = [sys.executable, "-m", "consumer", "run", task]
        for name, value in together.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        for name, value in (options or {}).items():
            command += ["--option", f"{name}={value}"]
        log_file = self._folder / f"worker-{number}.log"
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        worker = WorkerProcess(number, instance_name, log_file, process)
        self.all.append(worker)
        return worker

    def stop(self, timeout_s: float = 40.0) -> dict[WorkerProcess, int]:
        """SIGTERM to all that run, together; returns their exit codes."""
        stopping = self.running
        for worker in stopping:
            worker.terminate()
        return {worker: worker.ended(timeout_s) for worker in stopping}
