"""`consumer run`: put a worker together, run it until it is told to stop, and leave in good order."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from consumer.codec import Decoder, Encoder, load_schema
from consumer.config import Settings
from consumer.deadletter import Letters
from consumer.engine import choose_device
from consumer.exits import Exit
from consumer.finish import Finisher
from consumer.ops.health import Health, HealthServer
from consumer.registry import Registry
from consumer.task import Device, Task
from consumer.tasks import load_task
from consumer.telemetry import Telemetry
from consumer.worker import Worker

__all__ = ["build", "run"]

log = logging.getLogger(__name__)

_CLOSE_S = 5.0


def run(settings: Settings) -> int:
    """Run one worker; returns the exit code.  Raises Fatal and Retry for what ends it."""
    task = load_task(settings.task, settings.task_arguments())
    settings = settings.for_task(task)
    telemetry = Telemetry.start(
        "stream-consumer",
        task.name,
        settings.group_id,
        prometheus=settings.metrics_port is not None,
        log_format=settings.log_format,
        log_level=settings.log_level,
    )
    worker = build(settings, task, telemetry)
    with _stop_signals() as stopping, _pages(settings, worker, telemetry, stopping):
        try:
            worker.start()
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


def build(settings: Settings, task: Task, telemetry: Telemetry) -> Worker:
    """A worker for `task`; `settings` are complete (`Settings.for_task`).  Raises Fatal for what cannot work."""
    registry = _registry(settings)
    folders = [*map(Path, settings.schema_paths), *_beside(task)]
    events = [load_schema(name, folders) for name in task.events]
    result = load_schema(task.result, folders)
    schema_id = None if registry is None else registry.register(f"{settings.output_topic}-value", result)
    by_topic = dict(zip(settings.input_topics, events * len(settings.input_topics), strict=False))
    decoders = {
        topic: Decoder(
            schema, registry=registry, fields=task.fields, max_record_bytes=int(settings.max_record_bytes)
        )
        for topic, schema in by_topic.items()
    }
    letters = Letters(settings.dead_letter_topic, task.name, task.version, settings.group_id)
    return Worker(
        settings,
        task,
        decoders=decoders,
        finisher=Finisher(task, Encoder(result, schema_id=schema_id), settings.output_topic, letters),
        choose_device=_chooser(settings, task),
        telemetry=telemetry,
    )


def _registry(settings: Settings) -> Registry | None:
    if settings.schema_registry_url is None:
        return None
    password, token = settings.schema_registry_password, settings.schema_registry_token
    return Registry(
        settings.schema_registry_url,
        user=settings.schema_registry_user,
        password=None if password is None else password.get_secret_value(),
        token=None if token is None else token.get_secret_value(),
        ca_file=settings.schema_registry_ca_file,
        timeout_ms=settings.schema_registry_timeout_ms,
    )


def _beside(task: Task) -> list[Path]:
    """The folder of the task's own module: a task brings its schemas with it."""
    file = getattr(sys.modules.get(type(task).__module__), "__file__", None)
    return [Path(file).parent] if file else []


def _chooser(settings: Settings, task: Task) -> Callable[[], Device]:
    def choose() -> Device:
        if not task.on_device:
            return Device()
        if settings.torch_threads is not None:
            import torch

            torch.set_num_threads(settings.torch_threads)
        return choose_device(settings.device, settings.precision)

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
