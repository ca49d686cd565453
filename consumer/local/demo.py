"""`consumer demo`: real e-mails through a real Kafka and a real worker process, watched live and counted.

corpus ─► producer thread ─► emails ─► worker process ─► spam_verdicts, spam_dead_letters ─► reader thread ─► books
"""

from __future__ import annotations

import itertools
import shutil
import signal
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from confluent_kafka import Consumer, Producer
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, RenderableType
from rich.live import Live

from consumer.codec import Decoder, Encoder, load_schema
from consumer.errors import BadRecord, Fatal
from consumer.exits import Exit
from consumer.local.board import Pulse, board, summary
from consumer.local.broken import broken_records
from consumer.local.broker import EmbeddedBroker
from consumer.local.child import Child, worker
from consumer.local.ledger import Ledger, Sent
from consumer.local.mails import LabelledEvent, spam_assassin
from consumer.local.topics import TopicSpec, ensure_topics
from consumer.text import held_out

__all__ = ["run"]

_PARTITIONS = 6
_UNDER_WAY = 256
"""E-mails on their way at once: enough to fill batches, few enough that latency shows the product and not a queue."""
_BROKEN_EVERY = 100
_START_S = 120.0
_QUIET_S = 30.0
_REASON = "dead_letter.reason"


@dataclass(frozen=True, slots=True)
class _Topics:
    emails: str
    verdicts: str
    dead_letters: str


def run(*, events: int, forever: bool, bootstrap_servers: str | None = None) -> int:
    """Show the demo; 0 when every event had exactly the outcome that it should have, else 1."""
    console = Console()
    ledger = Ledger()
    with ExitStack() as stack:
        stopping = stack.enter_context(_until_signal())
        folder = Path(tempfile.mkdtemp(prefix="consumer-demo-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        mails = _mails(console)
        servers, where = bootstrap_servers, f"on {bootstrap_servers}"
        if servers is None:
            with console.status("starting Kafka"):
                broker = stack.enter_context(EmbeddedBroker(console=console))
            servers, where = (
                broker.bootstrap_servers,
                f"on an embedded Apache Kafka at {broker.bootstrap_servers}",
            )
        topics = _topics(own=bootstrap_servers is None)
        ensure_topics(
            {"bootstrap.servers": servers},
            [TopicSpec(name, _PARTITIONS) for name in (topics.emails, topics.verdicts, topics.dead_letters)],
        )
        port = _free_port()
        child = stack.enter_context(_start_worker(servers, topics, port, folder))
        with console.status("loading the model"):
            _wait_ready(child, port, stopping)
        goal = None if forever else events
        reader = stack.enter_context(_thread(_read, servers, topics, ledger))
        writer = stack.enter_context(_thread(_write, servers, topics, mails, goal, ledger, stopping))
        shown = partial(board, ledger, goal=goal, where=where)
        _watch(
            console,
            ledger,
            shown,
            child,
            port,
            lambda: reader.is_alive() and (writer.is_alive() or ledger.open > 0),
        )
    console.print(summary(ledger))
    return Exit.OK if ledger.clean else Exit.FATAL


def _mails(console: Console) -> Iterator[LabelledEvent]:
    """The held-out part of the corpus, round after round, each time under new ids."""
    unseen = [
        (event, label)
        for event, label in spam_assassin(console=console)
        if label is not None and held_out(event["subject"], event["body"])
    ]
    for round_number in itertools.count():
        for event, label in unseen:
            yield {**event, "id": f"{event['id']}-{round_number}"}, label


def _topics(*, own: bool) -> _Topics:
    """The usual names on a Kafka of our own, new ones on somebody else's."""
    prefix = "" if own else f"demo_{uuid.uuid4().hex[:8]}_"
    return _Topics(f"{prefix}emails", f"{prefix}spam_verdicts", f"{prefix}spam_dead_letters")


def _start_worker(servers: str, topics: _Topics, port: int, folder: Path) -> Child:
    return worker(
        [
            "spam",
            f"--bootstrap-servers={servers}",
            f"--group-id=demo-{uuid.uuid4().hex[:8]}",
            f"--input-topics={topics.emails}",
            f"--output-topic={topics.verdicts}",
            f"--dead-letter-topic={topics.dead_letters}",
            f"--metrics-port={port}",
            "--log-format=pretty",
        ],
        folder,
    )


def _wait_ready(child: Child, port: int, stopping: threading.Event) -> None:
    deadline = time.monotonic() + _START_S
    while not stopping.is_set():
        child.require_alive()
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2).close()
            return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            if time.monotonic() > deadline:
                raise Fatal(f"the worker is not ready after {_START_S:.0f} s:\n{child.log_tail()}") from None
        stopping.wait(0.1)


def _write(
    servers: str,
    topics: _Topics,
    mails: Iterator[LabelledEvent],
    goal: int | None,
    ledger: Ledger,
    stopping: threading.Event,
    quit: threading.Event,
) -> None:
    """Send e-mails, every hundredth record broken, as fast as results come back."""
    producer = Producer(
        {"bootstrap.servers": servers, "linger.ms": 1, "compression.type": "lz4", "log_level": 0}
    )
    encode = Encoder(load_schema("email")).encode_many
    first = next(mails)
    (sample,) = encode([first[0]])
    if isinstance(sample, BadRecord):
        raise Fatal(f"the demo's own e-mail does not fit its schema: {sample}")
    broken = broken_records(sample)
    for number, (event, label) in enumerate(itertools.chain([first], mails)):
        if number == goal:
            break
        while ledger.open >= _UNDER_WAY and not quit.wait(0.002):
            producer.poll(0)
        if quit.is_set() or stopping.is_set():
            break
        event_id = str(event["id"])
        value: bytes | BadRecord | None = encode([event])[0]
        if number % _BROKEN_EVERY == _BROKEN_EVERY - 1:
            (_, value), label = next(broken), None
        if isinstance(value, BadRecord):
            continue
        ledger.send(event_id, Sent(time.monotonic(), label, str(event["subject"])))
        producer.produce(topics.emails, key=event_id, value=value)
        producer.poll(0)
    producer.flush(10)


def _read(servers: str, topics: _Topics, ledger: Ledger, quit: threading.Event) -> None:
    """Enter what becomes visible into the books."""
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": f"demo-reader-{uuid.uuid4().hex[:8]}",
            "isolation.level": "read_committed",
            "log_level": 0,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([topics.verdicts, topics.dead_letters])
    decode = Decoder(load_schema("spam_verdict")).decode_many
    while not quit.is_set():
        record = consumer.poll(0.1)
        if record is None or record.error():
            continue
        if record.topic() == topics.dead_letters:
            reason = dict(record.headers() or []).get(_REASON) or b"unknown"
            key = record.key() or b""
            ledger.dead(_text(key), _text(reason), time.monotonic())
            continue
        (verdict,) = decode([record.value()])
        if isinstance(verdict, BadRecord):
            raise Fatal(f"a verdict cannot be read: {verdict}")
        model = f"{verdict['model']} {verdict['model_version']}"
        spam = verdict["label"] == "spam"
        ledger.result(verdict["event_id"], verdict["probability"], spam, model, time.monotonic())
    consumer.close()


def _watch(
    console: Console,
    ledger: Ledger,
    shown: Callable[[Pulse], RenderableType],
    child: Child,
    port: int,
    going: Callable[[], bool],
) -> None:
    """Show the board until everything is done or nothing moves any more."""
    sent = done = 0
    batches = transactions = (0.0, 0.0)
    pulse, at_s, moved_s = Pulse(), time.monotonic(), time.monotonic()
    with Live(shown(pulse), console=console, refresh_per_second=8) as live:
        while going():
            child.require_alive()
            time.sleep(0.1)
            now_s = time.monotonic()
            if now_s - at_s >= 1.0:
                span, previous = now_s - at_s, (batches, transactions)
                batches, transactions = _scrape(port)
                pulse = Pulse(
                    events=(ledger.total - sent) / span,
                    results=(ledger.settled - done) / span,
                    batch_size=_mean(previous[0], batches),
                    transaction_size=_mean(previous[1], transactions),
                    lag=ledger.open,
                )
                moved_s = now_s if ledger.settled > done else moved_s
                sent, done, at_s = ledger.total, ledger.settled, now_s
            if now_s - moved_s > _QUIET_S:
                raise Fatal(
                    f"no result for {_QUIET_S:.0f} s; the worker's log ends with:\n{child.log_tail()}"
                )
            live.update(shown(pulse))


def _scrape(port: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """(sum, count) of the worker's batch sizes and transaction sizes so far."""
    found: dict[str, float] = {}
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as page:
            text = page.read().decode()
    except (OSError, TimeoutError):
        return (0.0, 0.0), (0.0, 0.0)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    size, transaction = "consumer_batch_size", "consumer_transaction_size"
    return (
        (found.get(f"{size}_sum", 0.0), found.get(f"{size}_count", 0.0)),
        (found.get(f"{transaction}_sum", 0.0), found.get(f"{transaction}_count", 0.0)),
    )


def _mean(before: tuple[float, float], after: tuple[float, float]) -> float:
    count = after[1] - before[1]
    return (after[0] - before[0]) / count if count > 0 else 0.0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _until_signal() -> Iterator[threading.Event]:
    """Set by Ctrl-C or SIGTERM, so that everything is ended in good order."""
    stopping = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stopping.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _thread(work: Callable[..., None], *arguments: object) -> Iterator[threading.Thread]:
    """`work(*arguments, quit)` on a thread of its own, until the end of the block at the latest."""
    quit = threading.Event()
    thread = threading.Thread(target=work, args=(*arguments, quit), daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        quit.set()
        thread.join(10)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode(errors="replace")
