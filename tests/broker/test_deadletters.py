"""`consumer deadletters`: what failed is seen; after a fix it becomes a result, once, whoever is killed meanwhile."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from tests.broker.rig import (
    FAULTY,
    ROOT,
    SCORING,
    Rig,
    WorkerProcess,
    assert_each_once,
    click,
    header,
    headers_of,
    origin,
    score,
)


@pytest.fixture
def rig(bootstrap_servers: str, unique_name: Callable[[str], str], tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(bootstrap_servers, unique_name("letters"), tmp_path, partitions=2)
    rig.create()
    yield rig
    rig.close()


def arguments(rig: Rig, command: str, *more: str) -> list[str]:
    names = ("--bootstrap-servers", rig.servers, "--dead-letter-topic", rig.dead)
    return ["deadletters", command, SCORING, *more, *names]


def ask(rig: Rig, command: str, *more: str, code: int = 0) -> str:
    """What a command prints on standard output."""
    done = subprocess.run(
        [sys.executable, "-m", "consumer", *arguments(rig, command, *more)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    return done.stdout


def asked(rig: Rig, command: str, *more: str, code: int = 0) -> Any:
    return json.loads(ask(rig, command, *more, "--json", code=code))


BAD = {n: click(f"e{n}", "raise:run") for n in (3, 7, 11)} | {5: b"\xde\xad\xbe\xef", 9: click("e9")[:-3]}


def failed(rig: Rig) -> None:
    """Sixteen events through a worker that cannot do five of them."""
    rig.send([BAD.get(n, click(f"e{n}")) for n in range(16)], headers=[("trace", b"\x00\xff")])
    tail = rig.tail()
    worker = rig.worker(FAULTY)
    tail.count(16, alive=worker)
    assert worker.stop() == 0


def test_letters_are_listed_counted_shown_and_exported(rig: Rig, tmp_path: Path) -> None:
    failed(rig)
    letters = asked(rig, "list")
    assert sorted(each["reason"] for each in letters) == ["bad_frame", *["run_failed"] * 3, "truncated"]
    assert [each["failed_at_ms"] for each in letters] == sorted(each["failed_at_ms"] for each in letters)
    assert len(asked(rig, "list", "--limit", "2")) == 2
    assert asked(rig, "list", "--since", "now") == []
    (cut,) = asked(rig, "list", "--reason", "truncated")
    assert (cut["key"], cut["stage"]) == (base64.b64encode(b"k9").decode(), "decode")
    assert asked(rig, "list", "--key", "k9") == [cut]

    counts = {each["reason"]: each["count"] for each in asked(rig, "stats")}
    assert counts == {"run_failed": 3, "bad_frame": 1, "truncated": 1}

    page = ask(rig, "show", cut["place"])
    assert "truncated" in page
    assert '"e9"' in page, "the fields before the cut are readable"
    assert r"\xff" in page, "a header that is no text"
    assert "de ad be ef" in ask(rig, "show", asked(rig, "list", "--reason", "bad_frame")[0]["place"])

    file = tmp_path / "letters.jsonl"
    ask(rig, "export", str(file), "--reason", "run_failed")
    values = {base64.b64decode(json.loads(line)["value"]) for line in file.read_text().splitlines()}
    assert values == {BAD[n] for n in (3, 7, 11)}

    assert "no such dead letters" in ask(rig, "list", "--reason", "nothing")
    ask(rig, "show", "0:999", code=2)
    ask(rig, "show", "nowhere", code=2)


def test_after_a_fix_a_replayed_letter_becomes_a_result_once(rig: Rig) -> None:
    failed(rig)
    assert asked(rig, "replay", "--reason", "run_failed", "--dry-run")["sent"] == 3
    assert asked(rig, "replay", "--reason", "run_failed")["sent"] == 3
    again = asked(rig, "replay", "--reason", "run_failed")
    assert (again["sent"], again["already_replayed"]) == (0, 3), "a letter goes back once"

    tail = rig.tail()
    worker = rig.worker(SCORING)
    tail.count(19, alive=worker)  # 11 results and 5 letters before; 3 results now
    assert worker.stop() == 0
    tail.read(1.0)
    assert_each_once(
        (score(m.value())["event_id"] for m in tail.of(rig.out)),
        (f"e{n}" for n in range(16) if n not in (5, 9)),
    )
    letters = {origin(m): m for m in tail.of(rig.dead)}
    assert len(letters) == len(tail.of(rig.dead)) == 5

    sources = rig.tail(rig.source)
    sources.count(19)
    sent = {m.key(): m for m in sources.messages if b"dead_letter.replays" in str(m.headers()).encode()}
    assert sent.keys() == {b"k3", b"k7", b"k11"}
    for number in (3, 7, 11):
        back = sent[f"k{number}".encode()]
        letter = next(m for m in letters.values() if m.key() == back.key())
        assert back.value() == BAD[number]
        assert back.timestamp() == letter.timestamp()
        assert back.partition() == origin(letter)[0]
        assert headers_of(back) == {"trace": b"\x00\xff", "dead_letter.replays": b"1"}


def test_what_comes_back_too_often_stays(rig: Rig) -> None:
    rig.send([click("hopeless", "raise:run")])
    tail = rig.tail()
    worker = rig.worker(FAULTY)
    for round in range(1, 4):
        tail.count(round, alive=worker)
        assert header(tail.of(rig.dead)[-1], "replays") == ("" if round == 1 else str(round - 1))
        report = asked(rig, "replay", "--max-replays", "2", code=0 if round < 3 else 1)
        assert (report["sent"], report["looping"]) == ((1, 0) if round < 3 else (0, 1))
    assert worker.stop() == 0


LETTERS = 12_000


def test_a_killed_replay_neither_loses_nor_doubles(rig: Rig) -> None:
    producer = Producer({"bootstrap.servers": rig.servers, "linger.ms": 5, "enable.idempotence": True})
    for n in range(LETTERS):
        ours = {"reason": "run_failed", "topic": rig.source, "partition": str(n % 2), "offset": str(n)}
        headers: Any = [(f"dead_letter.{name}", value.encode()) for name, value in ours.items()]
        producer.produce(
            rig.dead, key=f"k{n}".encode(), value=click(f"e{n}"), headers=headers, partition=n % 2
        )
        producer.poll(0)
    assert producer.flush(60) == 0

    back = rig.tail(rig.source)
    for kill in range(2):
        replay = WorkerProcess.start(rig.folder / f"replay-{kill}.log", arguments(rig, "replay"), {})
        rig.workers.append(replay)
        seen = len(back.messages)
        back.count(seen + 1, timeout_s=60)
        replay.kill()
        assert replay.process.returncode == -9, replay.said()
    assert len(back.read(0.5)) < LETTERS, "it was over before it was killed: this proves nothing"
    last = asked(rig, "replay")
    assert 0 < last["sent"] < LETTERS
    assert last["sent"] + last["already_replayed"] == LETTERS
    back.count(LETTERS, timeout_s=60)
    back.read(1.0)
    assert_each_once(((m.key() or b"").decode() for m in back.messages), (f"k{n}" for n in range(LETTERS)))


def test_letters_without_a_home_or_with_a_part_left_out(rig: Rig) -> None:
    noise = time.time_ns().to_bytes(8, "big") * 10
    rig.send([noise])
    letters: list[dict[str, str]] = [
        {"topic": "no-such-topic", "partition": "0", "offset": "0"},
        {"topic": rig.source, "partition": "99", "offset": "0"},
        {"reason": "somebody else's record"},
        {"topic": rig.source, "partition": "0", "offset": "12345", "value": "left out"},
    ]
    home = rig.tail(rig.source)
    (record,) = home.count(1)
    letters.append(
        {
            "topic": rig.source,
            "partition": str(record.partition()),
            "offset": "0",
            "value": "80 bytes left out",
        }
    )
    producer = Producer({"bootstrap.servers": rig.servers})
    for ours in letters:
        producer.produce(
            rig.dead, key=b"k", headers=[(f"dead_letter.{k}", v.encode()) for k, v in ours.items()]
        )
    assert producer.flush(30) == 0
    report = asked(rig, "replay", code=1)
    assert (report["sent"], report["homeless"], report["incomplete"]) == (1, 3, 1)
    _, back = home.count(2)
    assert back.value() == noise, "what the letter lacks is read where it came from"
