"""Kafka is away, or not as it should be: a clear message, a sensible wait, an exit code that says what to do.

And the way out: SIGTERM finishes what is in flight, a second one does not wait, a deadline is a deadline.
"""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.broker.rig import FAULTY, SCORING, Rig, assert_each_once, click, score


@pytest.fixture
def rig(bootstrap_servers: str, unique_name: Callable[[str], str], tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(bootstrap_servers, unique_name("away"), tmp_path)
    yield rig
    rig.close()


@contextmanager
def nobody_listens() -> Iterator[str]:
    """An address that is taken but does not answer."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def test_a_worker_waits_for_the_broker_and_gives_up_with_exit_code_4(rig: Rig) -> None:
    with nobody_listens() as address:
        rig.servers = address
        began = time.monotonic()
        worker = rig.worker(SCORING, "--startup-timeout-ms", "2500")
        worker.wait_said("no broker answers yet")
        code = worker.ended(25)
    assert code == 4
    assert time.monotonic() - began >= 2.5
    assert "no broker answered" in worker.said()
    assert "Is Kafka running, and are bootstrap_servers and security.protocol right?" in worker.said()


def test_a_worker_that_waits_for_the_broker_can_be_stopped(rig: Rig) -> None:
    with nobody_listens() as address:
        rig.servers = address
        worker = rig.worker(SCORING)
        worker.wait_said("no broker answers yet")
        assert worker.stop(15) in (0, 3, 4)


def test_a_worker_that_waited_for_the_broker_goes_on_when_it_comes(rig: Rig) -> None:
    rig.create()
    rig.send([click("a")])
    host, port = rig.servers.split(":")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        late = free.getsockname()[1]
    real, rig.servers = rig.servers, f"127.0.0.1:{late}"
    worker = rig.worker(SCORING)
    worker.wait_said("no broker answers yet")
    with forwarding(late, (host, int(port))):
        rig.servers = real
        tail = rig.tail()
        tail.count(1, alive=worker)
        assert worker.stop() == 0


@contextmanager
def forwarding(port: int, to: tuple[str, int]) -> Iterator[None]:
    """Carries bytes both ways between `port` and `to`; a bootstrap address, the broker gives its own after it."""
    server = socket.create_server(("127.0.0.1", port))

    def carry(one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(65536):
                other.sendall(data)
        except OSError:
            pass
        for each in (one, other):
            each.close()

    def accept() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            there = socket.create_connection(to)
            for pair in ((client, there), (there, client)):
                threading.Thread(target=carry, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def test_a_missing_input_topic_is_named(rig: Rig) -> None:
    rig.create("out", "dead")
    worker = rig.worker(SCORING)
    assert worker.ended(20) == 1
    assert f"topic '{rig.source}' does not exist: create it (consumer topics create)" in worker.said()


@pytest.mark.parametrize("missing", ["out", "dead"])
def test_a_missing_output_topic_is_named_before_anything_is_read(rig: Rig, missing: str) -> None:
    rig.create(*{"in", "out", "dead"} - {missing})
    worker = rig.worker(SCORING)
    assert worker.ended(20) == 1
    assert f"topic '{rig.name}-{missing}' does not exist: create it (consumer topics create)" in worker.said()
    assert rig.committed() == 0


def test_tls_to_a_broker_that_speaks_none_is_explained(rig: Rig) -> None:
    rig.create()
    worker = rig.worker(SCORING, "-X", "security.protocol=ssl", "--startup-timeout-ms", "3000")
    assert worker.ended(30) in (1, 4)
    assert "security.protocol" in worker.said()


def test_sasl_to_a_broker_that_knows_none_is_explained(rig: Rig) -> None:
    rig.create()
    worker = rig.worker(
        SCORING,
        *("-X", "security.protocol=sasl_plaintext", "-X", "sasl.mechanism=PLAIN", "-X", "sasl.username=u"),
        *("-X", "sasl.password=geheim-42", "--startup-timeout-ms", "3000"),
    )
    assert worker.ended(30) in (1, 4)
    assert "security.protocol" in worker.said()
    assert "geheim" not in worker.said()


# The way out.


def test_sigterm_finishes_and_commits_what_is_in_flight(rig: Rig) -> None:
    rig.create()
    rig.send([click(f"id-{n}") for n in range(50)])
    tail = rig.tail()
    worker = rig.worker(SCORING, "--option", "run_ms=1500")
    worker.wait_joined()
    rig.send([click(f"id-{n}") for n in range(50, 60)])
    worker.wait_said("assigned")
    time.sleep(0.7)  # into the model's first call, which takes 1.5 s
    assert tail.read() == []
    assert worker.stop() == 0
    assert "everything that was read is committed" in worker.said()
    found = [score(m.value())["event_id"] for m in tail.read(1.0)]
    assert found, "what was in flight is not finished"
    assert_each_once(found, [f"id-{n}" for n in range(len(found))])
    assert rig.committed() == len(found)


def test_a_second_signal_ends_at_once(rig: Rig) -> None:
    rig.create()
    rig.send([click("a", "hang:run")])
    worker = rig.worker(FAULTY)
    worker.wait_said("run hangs on a")
    worker.signal(signal.SIGTERM)
    worker.wait_said("stopping: finishing what is in flight")
    began = time.monotonic()
    worker.signal(signal.SIGTERM)
    assert worker.ended(5) == 128 + signal.SIGTERM
    assert time.monotonic() - began < 2


def test_a_finish_that_hangs_holds_no_stop_up(rig: Rig) -> None:
    """It hangs on the loop thread itself, which can then do nothing more."""
    rig.create()
    rig.send([click("a", "hang:finish")])
    worker = rig.worker(FAULTY, "--drain-deadline-ms", "1000")
    worker.wait_said("finish hangs on a")
    assert worker.stop(25) == 3
    assert "nothing is lost" in worker.said()
    assert rig.committed() == 0


@pytest.mark.parametrize("where", ["run", "prepare"])
def test_a_deadline_is_a_deadline(rig: Rig, where: str) -> None:
    """Whatever of the task hangs: the worker ends with 3, and nothing of what hung is committed."""
    rig.create()
    rig.send([click("a", f"hang:{where}")])
    worker = rig.worker(FAULTY, "--drain-deadline-ms", "1500")
    worker.wait_said(f"{where} hangs on a")
    began = time.monotonic()
    assert worker.stop(20) == 3
    assert 1.5 <= time.monotonic() - began < 10
    assert "drain_deadline_ms passed" in worker.said()
    assert "nothing is lost" in worker.said()
    assert rig.committed() == 0
