"""Poison: one bad record among good ones ends as one dead letter, and costs its neighbours nothing."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.broker.rig import (
    CLICK_FRAME,
    FAULTY,
    Rig,
    assert_each_once,
    click,
    header,
    origin,
    score,
    send_raw,
)

MIB = 1 << 20
LARGE = {"max.message.bytes": str(32 * MIB)}


@pytest.fixture
def rig(bootstrap_servers: str, unique_name: Callable[[str], str], tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(bootstrap_servers, unique_name("poison"), tmp_path, config={"in": LARGE, "dead": LARGE})
    yield rig
    rig.close()


GOOD = [click(f"good-{n}") for n in range(400)]
POISON: dict[str, tuple[bytes | None, str, str]] = {
    "the model raises": (click("x", "raise:run"), "run_failed", "run"),
    "prepare raises": (click("x", "raise:prepare"), "prepare_failed", "prepare"),
    "finish raises": (click("x", "raise:finish"), "finish_failed", "finish"),
    "garbage": (b"\xde\xad\xbe\xef" * 10, "bad_frame", "decode"),
    "JSON": (b'{"id": "x"}', "bad_frame", "decode"),
    "truncated": (GOOD[0][:-3], "truncated", "decode"),
    "cut inside the frame": (GOOD[0][:6], "truncated", "decode"),
    "trailing bytes": (GOOD[0] + b"more", "trailing_bytes", "decode"),
    "unknown schema id": (b"\0\0\0\x07\xd0" + GOOD[0][10:], "unknown_schema_id", "decode"),
    "unknown fingerprint": (b"\xc3\x01" + bytes(8) + GOOD[0][10:], "unknown_schema", "decode"),
    "null": (None, "null_value", "decode"),
    "no bytes": (b"", "empty", "decode"),
    "not UTF-8": (GOOD[0].replace(b"shoe", b"\xff\xfe\xfd\xfc"), "bad_utf8", "decode"),
    "10 MB": (click("x", "p" * (10 * MIB)), "too_large", "decode"),
}


def test_proof_2_poison_ends_as_one_dead_letter_each(rig: Rig) -> None:
    rig.create()
    values: list[bytes | None] = []
    reasons: dict[int, str] = {}
    for n, good in enumerate(GOOD):
        values.append(good)
        if n % 20 == 10 and len(reasons) < len(POISON):
            name = list(POISON)[len(reasons)]
            reasons[len(values)] = name
            values.append(POISON[name][0])
    moment_ms = int(time.time() * 1000) - 1_000_000
    came_with = [("trace", b"\x00\xff"), ("trace", None), ("content-type", b"avro")]
    rig.send(values, headers=came_with, timestamp=moment_ms)

    tail = rig.tail()
    worker = rig.worker(FAULTY, "--max-chunk-records", "300")
    tail.count(len(values), alive=worker)
    assert worker.stop() == 0
    tail.read(1.0)

    assert_each_once(
        (score(m.value())["event_id"] for m in tail.of(rig.out)), (f"good-{n}" for n in range(400))
    )
    letters = {origin(m)[1]: m for m in tail.of(rig.dead)}
    assert len(letters) == len(tail.of(rig.dead)), "a record has two dead letters"
    assert letters.keys() == reasons.keys()
    for offset, name in reasons.items():
        letter, (value, reason, stage) = letters[offset], POISON[name]
        assert (header(letter, "reason"), header(letter, "stage")) == (reason, stage), name
        assert letter.value() == value, name
        assert letter.key() == f"k{offset}".encode()
        assert list(letter.headers() or [])[: len(came_with)] == came_with
        assert letter.timestamp()[1] == moment_ms
        assert header(letter, "topic") == rig.source
        assert header(letter, "task") == "faulty"
        assert header(letter, "group") == rig.group
        assert header(letter, "error")
    assert rig.committed() == len(values)


def test_poison_larger_than_the_dead_letter_topic_takes_is_shortened(rig: Rig) -> None:
    """What grows a record can be its value, its headers or its key: none of them may block the partition."""
    rig.config = {"in": LARGE}
    rig.create()
    noise = random.Random(0).randbytes(2 * MIB)  # it does not compress
    rig.send([GOOD[0]])
    rig.send([b"\xff" + noise])
    rig.send([b"garbage"], headers=[("h", noise), ("small", b"s")])
    rig.send([b"garbage"], key=noise)
    rig.send([GOOD[1]], key=noise)  # the result carries the key and does not fit either
    rig.send([GOOD[2]])
    tail = rig.tail()
    worker = rig.worker(FAULTY)
    tail.count(6, alive=worker)
    assert worker.stop() == 0
    tail.read(0.5)
    assert_each_once((score(m.value())["event_id"] for m in tail.of(rig.out)), ["good-0", "good-2"])
    letters = {origin(m)[1]: m for m in tail.of(rig.dead)}
    assert letters.keys() == {1, 2, 3, 4}
    assert letters[1].key() == b"k0"
    assert letters[1].value() is None
    assert "bytes left out" in header(letters[1], "value")
    assert header(letters[4], "reason") == "result_too_large"


def test_poison_with_a_moment_in_the_future_passes(rig: Rig) -> None:
    """A broker refuses moments more than an hour ahead, and a dead letter keeps that of its record."""
    rig.config = {"in": {"message.timestamp.after.max.ms": str(2**62)}}
    rig.create()
    tomorrow_ms = int(time.time() * 1000) + 86_400_000
    rig.send([GOOD[0], b"garbage", GOOD[1]], timestamp=tomorrow_ms)
    tail = rig.tail()
    worker = rig.worker(FAULTY)
    tail.count(3, alive=worker)
    assert worker.stop() == 0
    (letter,) = tail.of(rig.dead)
    assert header(letter, "timestamp_ms") == str(tomorrow_ms)


def test_poison_with_a_header_that_the_client_cannot_read(rig: Rig) -> None:
    """Java, Go and C write header names in any bytes; this client raises a SystemError for them."""
    rig.create()
    rig.send([GOOD[0]])
    send_raw(rig.servers, rig.source, GOOD[1], b"\xff\xfe")
    send_raw(rig.servers, rig.source, b"garbage", b"\xff\xfe")
    rig.send([GOOD[2]])
    tail = rig.tail()
    worker = rig.worker(FAULTY)
    tail.count(4, alive=worker)
    assert worker.stop() == 0
    assert_each_once(
        (score(m.value())["event_id"] for m in tail.of(rig.out)), [f"good-{n}" for n in range(3)]
    )
    (letter,) = tail.of(rig.dead)
    assert letter.value() == b"garbage"
    assert header(letter, "reason") == "bad_frame"


def test_a_long_run_of_dead_letters_stops_the_worker(rig: Rig) -> None:
    rig.create()
    rig.send(GOOD[:100])
    tail = rig.tail()
    worker = rig.worker(FAULTY, "--dead-letter-max-run", "50", "--max-chunk-records", "100")
    tail.count(100, alive=worker)
    rig.send([b"garbage"] * 51)
    assert worker.ended(30) == 1
    assert "51 records in a row became dead letters" in worker.said()
    assert "bad_frame" in worker.said()
    assert "raise dead_letter_max_run" in worker.said()
    assert len(tail.read(0.5)) == 100 + rig.committed() - 100
    assert rig.committed() < 151, "the offsets of the chunk over the cap are committed"


def test_a_large_share_of_dead_letters_stops_the_worker(rig: Rig) -> None:
    rig.create()
    rig.send(GOOD[:100])
    tail = rig.tail()
    worker = rig.worker(
        FAULTY, "--dead-letter-max-share", "0.2", "--dead-letter-window", "100", "--max-chunk-records", "100"
    )
    tail.count(100, alive=worker)
    rig.send([good if n % 3 else b"garbage" for n, good in enumerate(GOOD[100:])])
    assert worker.ended(30) == 1
    assert "dead_letter_max_share" in worker.said()
    assert "the offsets of this chunk are not committed" in worker.said()
    assert len(tail.read(0.5)) == rig.committed() < 400, "what is committed and what is published differ"


def test_the_frame_is_that_of_the_specification() -> None:
    from consumer.codec import load_schema

    assert load_schema("click").prefix == CLICK_FRAME
