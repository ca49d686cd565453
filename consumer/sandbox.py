"""Native decoders in child processes: one that hangs, crashes or eats memory costs one record, not the worker.

The limits are the kernel's (timers of the process, its address space), so they hold inside native code too, and no
thread has to watch.  A child is this module run as a program: it imports the one function that it is for, never torch
nor the caller's main module, and ends when the worker does.

    worker: head, body ─stdin─► child: function(head, body) ─stdout─► head, body
"""

from __future__ import annotations

import json
import os
import queue
import signal
import struct
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import IO, Any

from consumer.errors import BadRecord, Fatal

__all__ = ["Sandbox"]

_LENGTHS = struct.Struct("<QQ")
_PATIENCE = 6
"""Seconds on the clock for each second of CPU: a busy or frozen machine must not make good records look bad."""
_TIMERS = {-signal.SIGPROF, -signal.SIGALRM}
_ALONE = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")
_KNOWN = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")
"""Variables that a child gets: no secret of the worker is among them."""


class Sandbox:
    """Calls `function` (`module:name`, (head, body) -> (head, body)) in as many children as threads call at a time.

    A head is what JSON can say.  `cpu_s` and `memory_bytes` bound one call; memory only where the system can (Linux).
    """

    def __init__(self, function: str, *, cpu_s: float, memory_bytes: int) -> None:
        self._arguments = [function, str(cpu_s), str(memory_bytes)]
        self._cpu_s = cpu_s
        self._idle: queue.LifoQueue[_Child] = queue.LifoQueue()
        self.close = weakref.finalize(self, _end_all, self._idle)

    def call(self, head: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        """What the function answers.  Raises the BadRecord that it raises, or one that says how it died."""
        died = self._try(head, body)
        if isinstance(died, int) and died not in _TIMERS:
            died = self._try(head, body)  # the system may have ended the child for another's sake
        if not isinstance(died, int):
            return died
        if died in _TIMERS:
            raise BadRecord(
                "decoder_timed_out", f"the decoder took more than {self._cpu_s:g} s and was ended"
            )
        how = signal.Signals(-died).name if died < 0 else f"exit code {died}"
        raise BadRecord("decoder_crashed", f"the decoder died of it twice ({how})")

    def _try(self, head: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes] | int:
        try:
            child = self._idle.get_nowait()
        except queue.Empty:
            child = _Child(self._arguments)
        try:
            answer = child.ask(head, body)
        except (EOFError, BrokenPipeError):
            return child.end()
        except BaseException:
            child.end()
            raise
        self._idle.put(child)
        if "reason" in answer[0]:
            raise BadRecord(answer[0]["reason"], answer[0]["detail"])
        return answer


class _Child:
    """One process.  Its session is its own: Ctrl-C in the terminal is for the worker, which still needs it."""

    def __init__(self, arguments: list[str]) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - `end` closes it
        known = {name: os.environ[name] for name in _KNOWN if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "consumer.sandbox", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={
                **known,
                **_ALONE,
                "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            },
            start_new_session=True,
        )
        assert self._process.stdin and self._process.stdout
        self._in, self._out = self._process.stdin, self._process.stdout
        try:
            _read(self._out)
        except EOFError as error:
            self._process.wait()
            self._said.seek(0)
            said = self._said.read()[-1_000:].decode("utf-8", "replace").strip()
            self.end()
            raise Fatal(
                f"the decoder process does not start (pip install 'stream-consumer[models]'?): {said}"
            ) from error

    def ask(self, head: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        _write(self._in, head, body)
        return _read(self._out)

    def end(self) -> int:
        """Its return code; negative: the signal that ended it."""
        with suppress(BrokenPipeError):
            self._in.close()
        try:
            code = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._out.close()
        self._said.close()
        return code


def _end_all(idle: queue.LifoQueue[_Child]) -> None:
    with suppress(queue.Empty):
        while True:
            idle.get_nowait().end()


def _write(to: IO[bytes], head: dict[str, Any], body: bytes) -> None:
    packed = json.dumps(head).encode()
    to.write(_LENGTHS.pack(len(packed), len(body)) + packed)
    to.write(body)
    to.flush()


def _read(source: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    lengths = source.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        raise EOFError
    head, body = (source.read(length) for length in _LENGTHS.unpack(lengths))
    return json.loads(head), body


def _main(name: str, cpu_s: float, memory_bytes: int) -> None:
    """The child's loop, until its input ends."""
    source, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not stand among the answers
    module, _, attribute = name.partition(":")
    function = getattr(import_module(module), attribute)
    _bound_memory(memory_bytes)
    _write(answers, {}, b"")
    while True:
        try:
            head, body = _read(source)
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        signal.setitimer(signal.ITIMER_REAL, cpu_s * _PATIENCE)
        answer = _answer(function, head, body)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write(answers, *answer)


def _answer(
    function: Callable[[dict[str, Any], bytes], tuple[dict[str, Any], bytes]],
    head: dict[str, Any],
    body: bytes,
) -> tuple[dict[str, Any], bytes]:
    try:
        return function(head, body)
    except BadRecord as error:
        return {"reason": error.reason, "detail": error.detail}, b""
    except MemoryError:
        return {"reason": "decoder_out_of_memory", "detail": "it takes more memory than one upload may"}, b""
    except Exception as error:
        return {"reason": "prepare_failed", "detail": f"{type(error).__name__}: {error}"[:500]}, b""


def _bound_memory(extra_bytes: int) -> None:
    """From here on the process may take so much more."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (now + extra_bytes, now + extra_bytes))


if __name__ == "__main__":
    _main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
