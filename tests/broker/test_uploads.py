"""The task `image` on a real broker: files that break decoders, and files that lie on S3."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from consumer.codec import Decoder, Encoder, load_schema
from consumer.records import Event
from consumer.tasks.image import ImageTask
from tests.broker.rig import Rig, Tail, WorkerProcess, assert_each_once, header, origin
from tests.s3 import S3Server
from tests.tasks.media_files import BROKEN, still

MIB = 1 << 20
LARGE = {"max.message.bytes": str(16 * MIB)}
PEAK_MIB = 2_500
"""Of the worker and its decoders together, twice what was measured; a bomb that went off would take far more."""
FLAGS = ("--torch-threads", "1", "--max-batch-items", "8", "--max-batch-tokens", "16")
HASTY = (*FLAGS, "--option", "unsafe=no")


@pytest.fixture
def rig(bootstrap_servers: str, unique_name: Callable[[str], str], tmp_path: Path) -> Iterator[Rig]:
    made = Rig(bootstrap_servers, unique_name("uploads"), tmp_path, config={"in": LARGE, "dead": LARGE})
    made.create()
    yield made
    made.close()


def send(rig: Rig, events: Iterable[Event]) -> None:
    values = Encoder(load_schema("upload")).encode_many(list(events))
    rig.send([value for value in values if isinstance(value, bytes)])


def upload(number: int, data: bytes | None, kind: str = "image/jpeg", **other: Any) -> Event:
    return {**ImageTask.example, "id": f"upload-{number}", "data": data, "media_type": kind, **other}


def results(rig: Rig, tail: Tail) -> dict[str, Event]:
    found = Decoder(load_schema("detection")).decode_many([message.value() for message in tail.of(rig.out)])
    rows = [row for row in found if isinstance(row, dict)]
    assert_each_once([row["event_id"] for row in rows], {row["event_id"] for row in rows})
    return {row["event_id"]: row for row in rows}


@contextmanager
def watched(worker: WorkerProcess) -> Iterator[list[int]]:
    """The most bytes that the worker and its children have held together so far, sampled, in a list of one."""
    peak, over = [0], threading.Event()
    family = psutil.Process(worker.process.pid)

    def sample() -> None:
        while not over.wait(0.05):
            held = 0
            for one in (family, *family.children(recursive=True)):
                try:
                    held += one.memory_info().rss
                except psutil.Error:
                    continue  # it has ended
            peak[0] = max(peak[0], held)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    yield peak
    over.set()
    thread.join()


@pytest.mark.timeout(240)
def test_broken_media_become_dead_letters_and_their_neighbours_results(
    rig: Rig, record_property: Callable[..., None]
) -> None:
    assert len(BROKEN) >= 20
    good = still("image/jpeg")
    broken = {2 * number + 1: name for number, name in enumerate(BROKEN)}
    events = []
    for number, (kind, make, _) in enumerate(BROKEN.values()):
        events += [upload(2 * number, good), upload(2 * number + 1, make(), kind)]
    send(rig, events)
    tail = rig.tail()
    worker = rig.worker("image", *FLAGS)
    worker.wait_joined(90)
    with watched(worker) as peak:
        tail.count(len(events), 150, worker)
        assert worker.stop() == 0, worker.said()[-2000:]
    tail.read(0.5)
    found = results(rig, tail)
    assert found.keys() == {f"upload-{number}" for number in range(0, len(events), 2)}
    assert {row["objects"][0]["label"] for row in found.values()} == {"person"}
    letters = {origin(letter)[1]: letter for letter in tail.of(rig.dead)}
    assert len(letters) == len(tail.of(rig.dead)), "an upload has two dead letters"
    reasons = {broken[offset]: header(letter, "reason") for offset, letter in letters.items()}
    assert reasons == {name: reason for name, (_, _, reason) in BROKEN.items()}
    assert all(header(letter, "stage") == "prepare" for letter in letters.values())
    print(f"peak of worker and decoders: {peak[0] / MIB:.0f} MiB")
    record_property("peak_rss_mib", peak[0] // MIB)
    assert 100 * MIB < peak[0] < PEAK_MIB * MIB


@pytest.mark.timeout(240)
def test_uploads_on_s3_wait_for_a_storage_that_is_away(rig: Rig, tmp_path: Path) -> None:
    data = still("image/png", "chelsea.png")
    digest = hashlib.sha256(data).hexdigest()
    where = {"kind": "image/png", "sha256": digest}
    with S3Server(tmp_path / "s3") as server:
        there = server.put("photos", "2026/a cat.png", data).replace(" ", "%20")
        server.go_away()
        send(
            rig,
            [
                upload(0, None, uri=there, **where),
                upload(1, None, uri="s3://photos/none.png", **where),
                upload(2, None, uri=there, **{**where, "sha256": "0" * 64}),
                upload(3, None, uri=there, **where),
            ],
        )
        options = ("--option", "bucket=photos", "--option", f"s3_endpoint={server.endpoint}")
        tail = rig.tail()
        worker = rig.worker("image", *HASTY, *options, **server.environment())
        worker.wait_said("nothing is lost: tried again", 90)
        assert tail.read(0.5) == []
        server.start()
        tail.count(4, 90, worker)
        assert worker.stop() == 0, worker.said()[-2000:]
    found = results(rig, tail)
    assert {name: row["objects"][0]["label"] for name, row in found.items()} == {
        "upload-0": "cat",
        "upload-3": "cat",
    }
    reasons = {origin(letter)[1]: header(letter, "reason") for letter in tail.of(rig.dead)}
    assert reasons == {1: "missing_object", 2: "digest_mismatch"}


@pytest.mark.timeout(120)
def test_wrong_credentials_end_the_worker_before_it_takes_an_upload(rig: Rig, tmp_path: Path) -> None:
    with S3Server(tmp_path / "s3") as server:
        server.put("photos", "x", b"x")
        where = {
            "bucket": "photos",
            "s3_endpoint": server.endpoint,
            "s3_key_id": "reader",
            "s3_secret": "guess",
        }
        options = [word for name, value in where.items() for word in ("--option", f"{name}={value}")]
        worker = rig.worker("image", *HASTY, *options)
        assert worker.ended(90) == 1
    assert "refuses this worker" in worker.said() and "SignatureDoesNotMatch" in worker.said()
    assert "guess" not in worker.said()
    assert rig.committed() == 0
