"""`consumer run`: put a worker together, run it until it is told to stop, and leave in good order."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType

from consumer.codec import Decoder, Encoder, load_older
from consumer.config import Settings
from consumer.deadletter import Letters
from consumer.engine import choose_device
from consumer.exits import Exit
from consumer.finish import Finisher
from consumer.lookup import event_schema, registry_of, result_schema, schema_folders, table_schema
from consumer.ops.health import Health, HealthServer
from consumer.records import Offsets
from consumer.registry import Registry
from consumer.span_topic import SpanTopic
from consumer.state import Store
from consumer.tables import Tables
from consumer.task import Device, Task
from consumer.tasks import load_task
from consumer.telemetry import Telemetry
from consumer.worker import Worker

__all__ = ["build", "run"]

log = logging.getLogger(__name__)

_CLOSE_S = 5.0


Ends = Callable[[threading.Event], AbstractContextManager[object]]
"""Sets the event when there is nothing left to do, while it is entered."""


def run(settings: Settings, *, until: Offsets | None = None, ends: Ends | None = None) -> int:
    """Run one worker; returns the exit code.  Raises Fatal and Retry for what ends it.

    It reads up to `until` (None: on and on), and stops as on SIGTERM when `ends` says so.
    """
    task = load_task(settings.task, settings.task_arguments())
    settings = settings.for_task(task)
    settings.brokers()  # nothing must have begun where none are given
    telemetry = Telemetry.start(
        "stream-consumer",
        task.name,
        settings.group_id,
        prometheus=settings.metrics_port is not None,
        log_format=settings.log_format,
        log_level=settings.log_level,
        otherwise=SpanTopic(settings.admin_conf(), settings.trace_topic) if settings.trace_topic else None,
    )
    worker = build(settings, task, telemetry, until)
    faulthandler.register(signal.SIGUSR1)  # says on stderr where every thread stands
    with (
        _stop_signals() as stopping,
        _watchdog(stopping, settings.drain_deadline_ms / 1000 + 2 * _CLOSE_S),
        _pages(settings, worker, telemetry, stopping),
        nullcontext() if ends is None else ends(stopping),
    ):
        try:
            worker.start(stopping.is_set)
            while not stopping.is_set():
                worker.step()
            log.info("stopping: finishing what is in flight")
            drained = worker.drain(time.monotonic() + settings.drain_deadline_ms / 1000)
        finally:
            closed = _close(worker)
            telemetry.shutdown(2_000)
    if drained and closed:
        log.info("stopped; everything that was read is committed")
        return Exit.OK
    log.warning(
        "drain_deadline_ms passed: what is not committed is done again by the next worker, nothing is lost"
    )
    return Exit.UNFINISHED


def build(settings: Settings, task: Task, telemetry: Telemetry, until: Offsets | None = None) -> Worker:
    """A worker for `task`; `settings` are complete (`Settings.for_task`).  Raises Fatal for what cannot work."""
    registry = registry_of(settings)
    folders = schema_folders(settings, type(task))
    result = result_schema(task.result, folders)
    subject = f"{settings.output_topic}-value"
    schema_id = None if registry is None else registry.register(subject, result.text)
    decoders = {
        topic: Decoder(
            event_schema(name, folders),
            load_older(name, folders),
            registry=registry,
            fields=task.fields,
            max_record_bytes=int(settings.max_record_bytes),
        )
        for topic, name in settings.events_by_topic.items()
    }
    letters = Letters(settings.dead_letter_topic, task, settings.group_id)
    tables = _tables(settings, task, folders, registry)
    if tables is not None:
        task.table = tables.rows
    return Worker(
        settings,
        task,
        tables=tables,
        until=until,
        decoders=decoders,
        finisher=Finisher(
            task,
            Encoder(result, schema_id=schema_id),
            settings.output_topic,
            letters,
            _store(settings, task),
            settings.changelogs,
        ),
        choose_device=_chooser(settings, task),
        telemetry=telemetry,
    )


def _tables(
    settings: Settings, task: Task, folders: Sequence[Path], registry: Registry | None
) -> Tables | None:
    """What the task looks up, if it does."""
    topics = settings.tables(task)
    if not topics:
        return None
    decoders = {
        name: Decoder(
            table_schema(task.tables[name], folders),
            load_older(task.tables[name], folders),
            registry=registry,
            max_record_bytes=int(settings.max_record_bytes),
        ).decode_many
        for name in topics
    }
    return Tables(settings.admin_conf(), settings.group_id, topics, decoders)


def _store(settings: Settings, task: Task) -> Store | None:
    """Room for what the task remembers, if it does."""
    if not task.stateful:
        return None
    return Store(ttl_ms=settings.state_ttl_ms, max_value_bytes=int(settings.state_max_bytes))


def _chooser(settings: Settings, task: Task) -> Callable[[], Device]:
    def choose() -> Device:
        if not task.on_device:
            return Device()
        return choose_device(settings.device, settings.precision, settings.torch_threads)

    return choose


def _close(worker: Worker) -> bool:
    """Whether everything ended in time.  Closing waits for brokers, and they may be what is away."""
    closing = threading.Thread(target=worker.close, args=(_CLOSE_S,), name="close", daemon=True)
    closing.start()
    closing.join(2 * _CLOSE_S)
    return not closing.is_alive()


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """The first SIGTERM or SIGINT sets the event, the second ends the process at once."""
    stopping = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stopping.is_set():
            os._exit(128 + number)
        stopping.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _watchdog(stopping: threading.Event, patience_s: float) -> Iterator[None]:
    """Ends the process when stopping takes longer: a task that hangs on the loop thread must not hold it up."""
    done = threading.Event()

    def watch() -> None:
        stopping.wait()
        if not done.wait(patience_s):
            log.warning(
                "stopping takes too long, something hangs: what is not committed is done again by the next worker, "
                "nothing is lost"
            )
            os._exit(Exit.UNFINISHED)

    threading.Thread(target=watch, name="watchdog", daemon=True).start()
    try:
        yield
    finally:
        done.set()
        stopping.set()


@contextmanager
def _pages(
    settings: Settings, worker: Worker, telemetry: Telemetry, stopping: threading.Event
) -> Iterator[None]:
    """/metrics, /healthz and /readyz, where a port is given."""
    if settings.metrics_port is None:
        yield
        return

    def health() -> Health:
        return Health(worker.stepped_ns, worker.loaded, worker.joined, stopping.is_set())

    server = HealthServer(settings.metrics_port, health, telemetry.page)
    log.info("metrics and health on port %d", server.port)
    try:
        yield
    finally:
        server.close()
