"""What a demo needs in Kafka and beside it: topics, filled tables, and one worker process for each task."""

from __future__ import annotations

import os
import socket
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from consumer.codec import Encoder, load_schema
from consumer.config import Settings
from consumer.errors import BadRecord, Fatal
from consumer.local.child import Child, worker
from consumer.local.feeds import Part
from consumer.local.ledger import Ledger
from consumer.local.load import fill
from consumer.local.topics import TopicSpec, ensure_topics
from consumer.local.wanted import wanted
from consumer.records import Event
from consumer.task import Task
from consumer.tasks import find_task

__all__ = ["PARTITIONS", "Running", "await_ready", "prepare", "start"]

PARTITIONS = 6
_START_S = 240.0


@dataclass(slots=True)
class Running:
    """A task that takes part: its topics, its books, its process."""

    name: str
    part: Part
    task: type[Task]
    settings: Settings
    """Complete; the names of topics and group are those of this demo."""
    inputs: tuple[str, ...]
    """Input topics as its worker is told them."""
    ledger: Ledger = field(default_factory=Ledger)
    finest: dict[str, tuple[float, str]] = field(default_factory=dict)
    """Kind of picture -> how much there is to see in the best so far, and its event."""
    port: int = 0
    child: Child | None = None

    @property
    def outputs(self) -> tuple[str, str]:
        """Topics of results and of dead letters."""
        return self.settings.output_topic, self.settings.dead_letter_topic

    def require_alive(self) -> None:
        """Raises Fatal with the end of its log when the worker has ended by itself."""
        if self.child is not None:
            self.child.require_alive()


def prepare(servers: str, parts: Mapping[str, Part], *, own: bool) -> list[Running]:
    """Topics made and tables filled: under the usual names on a Kafka of our own, new ones on somebody else's."""
    mark = uuid.uuid4().hex[:8]
    prefix = "" if own else f"demo_{mark}_"
    tasks = {name: find_task(name) for name in parts}
    results = {name: f"{prefix}{task.result}s" for name, task in tasks.items()}
    running = []
    for name, part in parts.items():
        inputs = tuple(f"{tasks[other].result}={results[other]}" for other in part.reads if other in results)
        inputs = inputs or (f"{prefix}{part.feed}",)
        tables = {table: f"{prefix}{table}" for table in part.tables}
        settings = Settings(
            bootstrap_servers=servers,
            task=name,
            group_id=f"demo-{mark}-{name}",
            input_topics=inputs,
            output_topic=results[name],
            dead_letter_topic=f"{prefix}{name}_dead_letters",
            state_topic=f"demo-{mark}-{name}-state" if tasks[name].stateful else "",
            table_topics=tuple(f"{table}={topic}" for table, topic in tables.items()),
        )
        running.append(Running(name, part, tasks[name], settings.for_task(tasks[name]), inputs))
    specs: dict[str, TopicSpec] = {}
    for each in running:
        specs |= {spec.name: spec for spec in wanted(each.settings, each.task, PARTITIONS, None)}
    ensure_topics({"bootstrap.servers": servers}, list(specs.values()))
    for each in running:
        for table, topic in each.settings.tables(each.task).items():
            fill(servers, topic, _rows(each.task.tables[table], each.part.tables[table]()))
    return running


def _rows(schema: str, rows: Iterable[Event]) -> Iterable[tuple[bytes, bytes]]:
    encoder = Encoder(load_schema(schema))
    for row in rows:
        (value,) = encoder.encode_many([row])
        if isinstance(value, BadRecord):
            raise Fatal(f"row {row['id']} does not fit the schema {schema}: {value}")
        yield str(row["id"]).encode(), value


def start(running: Iterable[Running], folder: Path, stack: ExitStack) -> None:
    """One worker each, side by side; they end with `stack`."""
    each = list(running)
    threads = max(1, (os.cpu_count() or 1) // len(each))
    for one in each:
        one.port = _free_port()
        one.child = stack.enter_context(worker(_arguments(one, threads), folder, one.name))


def _arguments(one: Running, threads: int) -> list[str]:
    settings = one.settings
    return [
        one.name,
        f"--bootstrap-servers={settings.bootstrap_servers}",
        f"--group-id={settings.group_id}",
        f"--input-topics={','.join(one.inputs)}",
        f"--output-topic={settings.output_topic}",
        f"--dead-letter-topic={settings.dead_letter_topic}",
        *([f"--state-topic={settings.state_topic}"] if settings.state_topic else []),
        *([f"--table-topics={','.join(settings.table_topics)}"] if settings.table_topics else []),
        *(f"--option={name}={value}" for name, value in one.part.options.items()),
        f"--metrics-port={one.port}",
        f"--torch-threads={threads}",  # or each model would take all cores from the others
        f"--prepare-threads={threads}",
        "--log-format=pretty",
    ]


def await_ready(
    running: Iterable[Running], stopping: threading.Event, said: Callable[[list[str]], None]
) -> None:
    """Wait until every worker reads, or `stopping`; `said` gets the names of those that do not yet.

    Raises Fatal with the end of a worker's log when it dies or takes too long.
    """
    deadline = time.monotonic() + _START_S
    left = list(running)
    while left and not stopping.is_set():
        said([one.name for one in left])
        for one in list(left):
            one.require_alive()
            if _is_ready(one.port):
                left.remove(one)
        if left and time.monotonic() > deadline:
            child = left[0].child
            raise Fatal(
                f"the worker of task {left[0].name} is not ready after {_START_S:.0f} s:\n"
                f"{child.log_tail() if child else ''}"
            )
        stopping.wait(0.2)


def _is_ready(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2).close()
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
