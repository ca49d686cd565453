"""Log lines: what stands in them, with which trace, and how often."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from consumer import logs
from consumer.errors import Fatal

log = logging.getLogger("consumer.some_part")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def traced() -> tuple[str, str]:
    return ("ab" * 16, "cd" * 8)


def untraced() -> None:
    return None


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_json_line_has_its_trace_and_its_fields() -> None:
    stream = io.StringIO()
    logs.configure(traced, log_format="json", stream=stream)
    log.warning("record %d refused", 7, extra={"event_id": "mail-7", "path": io.BytesIO})
    (line,) = lines(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("time"))
    assert line == {
        "level": "warning",
        "logger": "consumer.some_part",
        "message": "record 7 refused",
        "trace_id": "ab" * 16,
        "span_id": "cd" * 8,
        "event_id": "mail-7",
        "path": "<class '_io.BytesIO'>",
    }


def test_a_json_line_stays_one_line_and_cannot_be_forged() -> None:
    stream = io.StringIO()
    logs.configure(untraced, log_format="json", stream=stream)
    log.info('one\n{"level": "error"}', extra={"level": "critical"})
    (line,) = lines(stream)
    assert line["message"] == 'one\n{"level": "error"}' and line["level"] == "info"
    assert "trace_id" not in line


def test_an_exception_is_in_its_line() -> None:
    stream = io.StringIO()
    logs.configure(untraced, log_format="json", stream=stream)
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("failed")
    assert lines(stream)[0]["exception"].splitlines()[-1] == "ValueError: broken"


def test_pretty_lines_are_coloured_on_a_terminal_only() -> None:
    for stream, colour in ((Terminal(), True), (io.StringIO(), False)):
        logs.configure(traced, log_format="pretty", stream=stream)
        log.error("broker is away", extra={"broker": "b1:9092"})
        text = stream.getvalue()
        assert ("\x1b[31m" in text) is colour
        plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
        assert re.fullmatch(
            r"\d\d:\d\d:\d\d\.\d{3} ERROR   some_part: broker is away  broker=b1:9092 trace_id=(ab){16}\n",
            plain,
        )


def test_auto_is_pretty_on_a_terminal_and_json_elsewhere() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    logs.configure(untraced, stream=terminal)
    log.info("hello")
    logs.configure(untraced, stream=pipe)
    log.info("hello")
    assert "some_part: hello" in terminal.getvalue()
    assert lines(pipe)[0]["message"] == "hello"


def test_setting_up_twice_does_not_double_the_lines(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(untraced, log_format="json", stream=sys.stderr)
    logs.configure(untraced, log_format="json", stream=sys.stderr)
    log.info("once")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_levels() -> None:
    stream = io.StringIO()
    logs.configure(untraced, log_format="json", level="warning", stream=stream)
    log.info("unheard")
    log.warning("heard")
    assert [line["message"] for line in lines(stream)] == ["heard"]
    with pytest.raises(Fatal, match="'loud' is unknown: use DEBUG"):
        logs.configure(untraced, level="loud")


def limited(every_s: float, clock: list[float]) -> tuple[logging.Logger, io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonLines(untraced))
    handler.addFilter(logs.RateLimit(every_s, lambda: clock[0]))
    logger = logging.Logger("limited")
    logger.addHandler(handler)
    return logger, stream


def test_repeated_warnings_are_held_back_and_counted() -> None:
    clock = [100.0]
    logger, stream = limited(10.0, clock)
    for number in range(500):
        logger.warning("broker %d is away", number)
        logger.error("another kind")
    clock[0] = 111.0
    logger.warning("broker %d is away", 9)
    clock[0] = 122.0
    logger.warning("broker %d is away", 9)
    told = [(line["message"], line.get("repeats")) for line in lines(stream)]
    assert told == [
        ("broker 0 is away", None),
        ("another kind", None),
        ("broker 9 is away", 499),
        ("broker 9 is away", None),
    ]


def test_information_and_critical_lines_always_pass() -> None:
    logger, stream = limited(10.0, [0.0])
    for _ in range(3):
        logger.info("step")
        logger.critical("end")
    assert len(lines(stream)) == 6


def test_the_memory_of_kinds_is_bounded() -> None:
    limit = logs.RateLimit(10.0, lambda: 0.0)
    for number in range(10_000):
        limit.filter(logging.makeLogRecord({"levelno": logging.WARNING, "msg": f"text {number}"}))
    assert len(limit._seen) <= logs.MAX_KINDS
