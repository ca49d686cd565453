"""Logs on stderr: JSON for collectors, short lines for people; with the ids of the current trace.

The product's modules log with `logging.getLogger(__name__)`; what goes in `extra=` becomes
fields.  Text of an event never goes into a log, only its id and where it lies.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import IO, Literal

from consumer.errors import Fatal

__all__ = ["JsonLines", "LogFormat", "PrettyLines", "RateLimit", "configure"]

LogFormat = Literal["auto", "json", "pretty"]
CurrentTrace = Callable[[], tuple[str, str] | None]
"""(trace id, span id) of the span that is current on the calling thread, in hexadecimal digits."""

STANDARD_FIELDS = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "repeats"}
MAX_KINDS = 1000
COLOURS = {logging.WARNING: "\x1b[33m", logging.ERROR: "\x1b[31m", logging.CRITICAL: "\x1b[1;31m"}


def configure(
    current_trace: CurrentTrace,
    *,
    log_format: LogFormat = "auto",
    level: str = "INFO",
    stream: IO[str] | None = None,
    rate_limit_s: float = 10.0,
) -> logging.Handler:
    """Send the logs of the whole process to `stream` (stderr) and return the handler.

    `auto` is pretty on a terminal and JSON elsewhere.  Raises Fatal for an unknown level.
    """
    stream = stream or sys.stderr
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise Fatal(f"log level {level!r} is unknown: use DEBUG, INFO, WARNING or ERROR")
    terminal = stream.isatty()
    handler = logging.StreamHandler(stream)
    json_wanted = log_format == "json" or (log_format == "auto" and not terminal)
    pretty = PrettyLines(current_trace, colour=terminal)
    handler.setFormatter(JsonLines(current_trace) if json_wanted else pretty)
    handler.addFilter(RateLimit(rate_limit_s))
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h.formatter, JsonLines | PrettyLines)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(number)
    return handler


class JsonLines(logging.Formatter):
    """One object a line: time, level, logger, message, trace_id, span_id, the `extra` fields, exception."""

    def __init__(self, current_trace: CurrentTrace) -> None:
        super().__init__()
        self._current_trace = current_trace

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if trace := self._current_trace():
            line["trace_id"], line["span_id"] = trace
        line.update((k, v) for k, v in record.__dict__.items() if k not in STANDARD_FIELDS and k not in line)
        if repeats := getattr(record, "repeats", 0):
            line["repeats"] = repeats
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class PrettyLines(logging.Formatter):
    """`12:34:56.789 WARNING source: message  key=value`, coloured by level on a terminal."""

    def __init__(self, current_trace: CurrentTrace, *, colour: bool = False) -> None:
        super().__init__()
        self._current_trace = current_trace
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        name = record.name.removeprefix("consumer.")
        line = f"{clock}.{int(record.msecs):03d} {record.levelname:<7} {name}: {record.getMessage()}"
        fields = {k: v for k, v in record.__dict__.items() if k not in STANDARD_FIELDS}
        if trace := self._current_trace():
            fields["trace_id"] = trace[0]
        if fields:
            line += "  " + " ".join(f"{key}={value}" for key, value in fields.items())
        if repeats := getattr(record, "repeats", 0):
            line += f"  (and {repeats} more like it)"
        if self._colour and record.levelno in COLOURS:
            line = f"{COLOURS[record.levelno]}{line}\x1b[0m"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class RateLimit(logging.Filter):
    """Lets one warning or error of a kind through every `every_s` seconds; the next says how many it stands for.

    A kind is logger, level and the text before its arguments are filled in.  Critical lines always pass.
    """

    def __init__(self, every_s: float, now_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._every_s = every_s
        self._now_s = now_s
        self._seen: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not logging.WARNING <= record.levelno < logging.CRITICAL:
            return True
        kind = (record.name, record.levelno, str(record.msg))
        now_s = self._now_s()
        passed_s, held_back = self._seen.get(kind, (-float("inf"), 0))
        if now_s - passed_s < self._every_s:
            self._seen[kind] = (passed_s, held_back + 1)
            return False
        if len(self._seen) >= MAX_KINDS:
            self._seen.clear()
        self._seen[kind] = (now_s, 0)
        record.repeats = held_back
        return True
