"""`consumer demo`: real events through a real Kafka and a worker process for each task, watched live and counted.

FEEDS ─► sender threads ─► event topics ─► workers ─► results, dead letters ─► reader thread ─► books ─► board
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live

from consumer.errors import ConsumerError, Fatal
from consumer.exits import Exit
from consumer.fetch import cache_dir
from consumer.local import show, stage, supplies, traffic
from consumer.local.board import Row, board, summary
from consumer.local.broker import EmbeddedBroker
from consumer.local.feeds import FEEDS, Part, chosen
from consumer.local.meter import Meter
from consumer.local.stage import Running
from consumer.local.traffic import Sender

__all__ = ["run"]

_QUIET_S = 60.0
_CALM_S = 0.5
"""Time in which an outcome that should not be would still show itself."""


def run(
    *,
    events: int,
    forever: bool = False,
    tasks: Iterable[str] = (),
    bootstrap_servers: str | None = None,
    pictures: Path | None = None,
    seen: Callable[[Sequence[Row], RenderableType], None] = lambda rows, picture: None,
) -> int:
    """Show the demo; 0 when every event became what it should have, else 1.

    events: e-mails; of other events a share.  tasks: their names, all where none are given.  pictures: folder for
    annotated pictures.  seen: called with the books and each picture of the live board.
    """
    console = Console()
    parts = chosen(tasks)
    with ExitStack() as stack:
        stopping = stack.enter_context(_until_signal())
        stack.enter_context(_without_echo())
        supplies.fetch(_supplies(parts, own_kafka=bootstrap_servers is None), console)
        servers, where = bootstrap_servers, f"on {bootstrap_servers}"
        if servers is None:
            with console.status("starting Kafka"):
                broker = stack.enter_context(EmbeddedBroker(console=console))
            servers = broker.bootstrap_servers
            where = f"on an embedded Apache Kafka at {servers}"
        with console.status("making topics, filling tables"):
            running = stage.prepare(servers, parts, own=bootstrap_servers is None)
        senders = _senders(servers, running, None if forever else events)
        _start(console, stack, running, senders, stopping)
        helpers = [
            stack.enter_context(_Thread(traffic.read, servers, running)),
            stack.enter_context(_Thread(traffic.follow, servers, running)),
        ]
        writers = [stack.enter_context(_Thread(sender.run, stopping)) for sender in senders]
        rows = _watch(console, running, helpers, writers, _goal(running, senders), where, seen)
        console.print(summary(rows))
        for one in running:
            if one.part.depicts:
                _depict(
                    console, one, pictures or cache_dir() / "pictures", hint=bootstrap_servers is not None
                )
    return Exit.OK if all(row.ledger.clean for row in rows) else Exit.FATAL


def _supplies(parts: dict[str, Part], *, own_kafka: bool) -> list[supplies.Supply]:
    needed = [supply for part in parts.values() for supply in part.supplies]
    return [supplies.KAFKA, *needed] if own_kafka else needed


def _senders(servers: str, running: Sequence[Running], events: int | None) -> list[Sender]:
    """One for each feed that somebody reads."""
    readers: dict[str, list[Running]] = {}
    for one in running:
        if one.part.feed is not None:
            readers.setdefault(one.part.feed, []).append(one)
    return [
        Sender(
            servers,
            each[0].settings.input_topics[0],
            FEEDS[name],
            None if events is None else traffic.goal(FEEDS[name], events),
            each,
        )
        for name, each in readers.items()
    ]


def _goal(running: Sequence[Running], senders: Sequence[Sender]) -> int | None:
    """Events of all tasks together, without those that are results of others."""
    goals = [sender.goal for sender in senders for _ in sender.readers]
    return None if None in goals else sum(goal or 0 for goal in goals)


def _start(
    console: Console,
    stack: ExitStack,
    running: Sequence[Running],
    senders: Sequence[Sender],
    stopping: threading.Event,
) -> None:
    """Workers up, and what will be sent read meanwhile."""
    folder = Path(tempfile.mkdtemp(prefix="consumer-demo-"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    stage.start(running, folder, stack)
    with console.status("reading the events") as status:
        for sender in senders:
            sender.load()
        stage.await_ready(running, stopping, lambda left: status.update(f"loading models: {', '.join(left)}"))


def _watch(
    console: Console,
    running: Sequence[Running],
    helpers: Sequence[_Thread],
    writers: Sequence[_Thread],
    goal: int | None,
    where: str,
    seen: Callable[[Sequence[Row], RenderableType], None],
) -> list[Row]:
    """Show the board until everything is done or nothing moves any more; the books as they then are."""
    meters = {one.name: Meter(one.ledger) for one in running}
    rates = dict.fromkeys(meters, None) | {}
    read_s = moved_s = time.monotonic()
    done = 0

    def rows() -> list[Row]:
        return [Row(one.name, one.part, one.ledger, rates[one.name]) for one in running]

    def shown() -> RenderableType:
        return board(rows(), goal=goal, where=where, height=console.height - 1)

    with Live(shown(), console=console, refresh_per_second=8) as live:
        while _is_going(running, writers) or time.monotonic() - moved_s < _CALM_S:
            time.sleep(0.1)
            _require_well(running, [*helpers, *writers])
            now_s = time.monotonic()
            if now_s - read_s >= 1.0:
                rates |= {name: meter.read(now_s) for name, meter in meters.items()}
                read_s = now_s
            outcomes = sum(one.ledger.settled + one.ledger.results for one in running)
            if outcomes != done:
                done, moved_s = outcomes, now_s
            if now_s - moved_s > _QUIET_S:
                raise Fatal(f"no result for {_QUIET_S:.0f} s; the workers' logs end with:\n{_logs(running)}")
            picture = shown()
            seen(rows(), picture)
            live.update(picture)
    if not console.is_terminal:
        console.print()  # the board ended without one
    return rows()


def _is_going(running: Sequence[Running], writers: Sequence[_Thread]) -> bool:
    return any(each.is_alive() for each in writers) or any(one.ledger.open for one in running)


def _require_well(running: Sequence[Running], threads: Sequence[_Thread]) -> None:
    for one in running:
        one.require_alive()
    for each in threads:
        if each.failure is not None:
            raise each.failure


def _logs(running: Sequence[Running]) -> str:
    late = [one for one in running if one.ledger.open and one.child is not None]
    return "\n".join(f"{one.name}:\n{one.child.log_tail() if one.child else ''}" for one in late)


def _depict(console: Console, one: Running, folder: Path, *, hint: bool) -> None:
    """Save the finest photo and the finest video with what was found in them; say how to make others."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, (_, event_id) in sorted(one.finest.items()):
        file = folder / ("photo.jpg" if kind == "image" else "video.jpg")
        try:
            show.depict(one.settings, event_id, file)
        except ConsumerError as error:
            console.print(f"no picture of {event_id}: {error}", style="yellow", markup=False)
            continue
        console.print(
            f"a {'photo' if kind == 'image' else 'video'} with what was found in it: {file}", soft_wrap=True
        )
        if hint:
            command = (
                f"consumer show {one.name} {event_id} -o out.png "
                f"--bootstrap-servers {one.settings.bootstrap_servers} --output-topic {one.settings.output_topic}"
            )
            console.print(f"the same again: {command}", soft_wrap=True, highlight=False)


class _Thread(threading.Thread):
    """`work(*arguments, quit)` on a thread of its own, until the end of the block at the latest."""

    def __init__(self, work: Callable[..., None], *arguments: object) -> None:
        super().__init__(daemon=True)
        self._work, self._arguments = work, arguments
        self._quit = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self._work(*self._arguments, self._quit)
        except BaseException as error:
            self.failure = error

    def __enter__(self) -> _Thread:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._quit.set()
        self.join(10)


@contextmanager
def _until_signal() -> Iterator[threading.Event]:
    """Set by Ctrl-C or SIGTERM, so that everything is ended in good order; a second one does not wait for results."""
    stopping = threading.Event()

    def stop(*_: object) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
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
