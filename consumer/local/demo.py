"""`consumer demo`: real e-mails through a real Kafka and a real worker process, watched live and counted.

corpus ─► producer thread ─► emails ─► worker process ─► spam_verdicts, spam_dead_letters ─► reader thread ─► books
"""

from __future__ import annotations

import itertools
import shutil
import signal
import socket
import sys
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

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition
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
from consumer.local.mails import LabelledEvent, corpus_tarball, spam_assassin
from consumer.local.meter import Meter
from consumer.local.topics import TopicSpec, ensure_topics
from consumer.text import held_out

__all__ = ["UNDER_WAY", "run"]

_PARTITIONS = 6
UNDER_WAY = 64
"""E-mails on their way at once: enough to fill batches, few enough that latency shows more than a queue."""
_BROKEN_EVERY = 100
_START_S = 120.0
_QUIET_S = 30.0
_REASON = "dead_letter.reason"


@dataclass(frozen=True, slots=True)
class _Topics:
    emails: str
    verdicts: str
    dead_letters: str


def run(
    *,
    events: int,
    forever: bool,
    bootstrap_servers: str | None = None,
    seen: Callable[[Ledger, RenderableType], None] = lambda ledger, picture: None,
) -> int:
    """Show the demo; 0 when every event had exactly the outcome that it should have, else 1.

    seen: called with the books and each picture of the live board.
    """
    console = Console()
    ledger = Ledger()
    with ExitStack() as stack:
        stopping = stack.enter_context(_until_signal())
        stack.enter_context(_without_echo())
        folder = Path(tempfile.mkdtemp(prefix="consumer-demo-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        corpus_tarball(console)
        servers, where = bootstrap_servers, f"on {bootstrap_servers}"
        if servers is None:
            with console.status("starting Kafka"):
                broker = stack.enter_context(EmbeddedBroker(console=console))
            servers = broker.bootstrap_servers
            where = f"on an embedded Apache Kafka at {servers}"
        topics = _topics(own=bootstrap_servers is None)
        ensure_topics(
            {"bootstrap.servers": servers},
            [TopicSpec(name, _PARTITIONS) for name in (topics.emails, topics.verdicts, topics.dead_letters)],
        )
        port = _free_port()
        child = stack.enter_context(_start_worker(servers, topics, port, folder))
        with console.status("reading the e-mails, loading the model"):
            mails = _rounds(_unseen())
            _wait_ready(child, port, stopping)
        goal = None if forever else events
        reader = stack.enter_context(_thread(_read, servers, topics, ledger))
        writer = stack.enter_context(_thread(_write, servers, topics, mails, goal, ledger, stopping))
        _watch(
            console,
            ledger,
            partial(board, goal=goal, where=where, under_way=UNDER_WAY),
            child,
            port,
            lambda: reader.is_alive() and (writer.is_alive() or ledger.open > 0),
            seen,
        )
    console.print(summary(ledger, under_way=UNDER_WAY))
    return Exit.OK if ledger.clean else Exit.FATAL


def _unseen() -> list[LabelledEvent]:
    """The part of the corpus that the model was not trained on."""
    return [
        (event, label)
        for event, label in spam_assassin()
        if label is not None and held_out(event["subject"], event["body"])
    ]


def _rounds(mails: list[LabelledEvent]) -> Iterator[LabelledEvent]:
    """`mails` again and again, each time under new ids."""
    for number in itertools.count():
        for event, label in mails:
            yield {**event, "id": f"{event['id']}-{number}"}, label


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
        while ledger.open >= UNDER_WAY and not quit.wait(0.002):
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
            "enable.auto.commit": False,
        }
    )
    consumer.assign(
        [
            TopicPartition(topic, partition, OFFSET_BEGINNING)
            for topic in (topics.verdicts, topics.dead_letters)
            for partition in range(_PARTITIONS)
        ]
    )
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
        ledger.result(
            verdict["event_id"],
            verdict["probability"],
            verdict["threshold"],
            spam,
            model,
            time.monotonic(),
        )
    consumer.close()


def _watch(
    console: Console,
    ledger: Ledger,
    shown: Callable[..., RenderableType],
    child: Child,
    port: int,
    going: Callable[[], bool],
    seen: Callable[[Ledger, RenderableType], None],
) -> None:
    """Show the board until everything is done or nothing moves any more; it ends on the numbers of the whole."""
    meter = Meter(ledger, port)
    pulse, done, moved_s = Pulse(), 0, time.monotonic()
    with Live(shown(ledger, pulse), console=console, refresh_per_second=8) as live:
        while going():
            child.require_alive()
            time.sleep(0.1)
            now_s = time.monotonic()
            if now_s - meter.at_s >= 1.0:
                pulse = meter.read(now_s)
            if ledger.settled > done:
                done, moved_s = ledger.settled, now_s
            if now_s - moved_s > _QUIET_S:
                raise Fatal(
                    f"no result for {_QUIET_S:.0f} s; the worker's log ends with:\n{child.log_tail()}"
                )
            picture = shown(ledger, pulse)
            seen(ledger, picture)
            live.update(picture)
        below = len(console.render_lines(summary(ledger, under_way=UNDER_WAY), pad=False))
        live.update(shown(ledger, meter.whole(), whole=True, height=console.height - below - 1))
    if not console.is_terminal:
        console.print()  # the board ended without one


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
def _without_echo() -> Iterator[None]:
    """Ctrl-C leaves no ^C on the terminal, where it would push the board down by a line."""
    try:
        import termios

        terminal = sys.stdin.fileno()
        before = termios.tcgetattr(terminal)
    except (ImportError, OSError, ValueError, termios.error):
        yield
        return
    quiet = list(before)
    quiet[3] &= ~termios.ECHOCTL
    termios.tcsetattr(terminal, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


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
