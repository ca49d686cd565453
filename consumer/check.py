"""`consumer check`, the doctor: everything that a worker needs, each with what to do where it is wrong.

Each check is a function that yields findings; one that cannot be made because of another says so in the other's words.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace
from typing import Any, Literal

from rich.table import Table

from consumer.codec import Decoder, Encoder
from consumer.config import Settings
from consumer.deadletter import Letters
from consumer.engine import choose_device
from consumer.errors import BadRecord, ConsumerError, Fatal, Retry
from consumer.finish import Finisher
from consumer.isolation import as_item, described, isolate
from consumer.local import probe
from consumer.local.topics import TopicState, describe_topics
from consumer.lookup import event_schema, registry_of, result_schema, schema_folders
from consumer.records import Chunk
from consumer.state import Store
from consumer.task import Device, State, Task
from consumer.tasks import load_task

__all__ = ["Finding", "as_table", "examine"]

Level = Literal["ok", "warn", "fail"]
_MARKS = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "fail": "[bold red]fail[/]"}
_PACKAGES = ("stream-consumer", "confluent-kafka", "fastavro", "numpy", "torch")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's report."""

    what: str
    state: Level
    detail: str
    remedy: str = ""


def examine(settings: Settings) -> list[Finding]:
    """All findings, without a group joined or a record left behind; with a task in `settings`, its needs too."""
    findings = list(_guarded("versions", _versions))
    task: Task | None = None
    if settings.task:
        try:
            task = load_task(settings.task, settings.task_arguments())
            settings = settings.for_task(task)
            findings.append(
                Finding("task", "ok", f"{task.name}: {' and '.join(task.events)} to {task.result}")
            )
        except Fatal as error:
            findings.append(Finding("task", "fail", str(error)))
    findings += _guarded("broker", lambda: _broker(settings))
    reached = findings[-1].what == "broker" and findings[-1].state != "fail"
    if reached and task is not None:
        findings += _guarded("topics", lambda: _topics(settings, task))
        findings += _guarded("group", lambda: _group(settings))
        findings += _guarded("transactions", lambda: _transactions(settings))
    findings += _guarded("registry", lambda: _registry(settings, task))
    if task is not None:
        findings += _guarded("schemas", lambda: _schemas(settings, task))
        findings += _guarded("model", lambda: _model(settings, task))
        if all(one.state != "fail" for one in findings if one.what in ("schemas", "model")):
            findings += _guarded("example", lambda: _example(settings, task))
    findings += _guarded("ports", lambda: _ports(settings))
    findings += _guarded("security", lambda: _security(settings))
    return findings


def as_table(findings: list[Finding]) -> Table:
    """For people."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for one in findings:
        remedy = f"\n[bold]→ {_plain(one.remedy)}[/]" if one.remedy else ""
        table.add_row(_MARKS[one.state], one.what, _plain(one.detail) + remedy)
    return table


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def _guarded(what: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of one check; what it raises is a finding too, for the doctor must not die of the disease."""
    try:
        yield from check()
    except ConsumerError as error:
        yield Finding(what, "fail", str(error))
    except Exception as error:
        yield Finding(what, "fail", described(error))


def _versions() -> Iterator[Finding]:
    installed = {"Python": sys.version.split()[0]}
    for name in _PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    installed |= probe.versions()
    yield Finding("versions", "ok", ", ".join(f"{name} {number}" for name, number in installed.items()))


def _broker(settings: Settings) -> Iterator[Finding]:
    try:
        found = probe.cluster(settings)
    except Retry as error:
        remedy = "check bootstrap_servers and the network; `consumer broker` starts a Kafka on this machine"
        yield Finding("broker", "fail", str(error), remedy)
        return
    limits = (
        ("transaction_timeout_ms", found.max_transaction_timeout_ms, "transaction.max.timeout.ms", False),
        ("session_timeout_ms", found.min_session_timeout_ms, "group.min.session.timeout.ms", True),
    )
    for name, limit, theirs, is_least in limits:
        ours = getattr(settings, name)
        if limit is not None and (ours < limit if is_least else ours > limit):
            bound = "at least" if is_least else "at most"
            yield Finding(
                name, "fail", f"{ours} is refused by the brokers", f"set it to {bound} {limit} ({theirs})"
            )
    brokers = "1 broker" if found.brokers == 1 else f"{found.brokers} brokers"
    yield Finding("broker", "ok", f"{settings.bootstrap_servers} answers: {brokers}, cluster {found.id}")


def _topics(settings: Settings, task: Task) -> Iterator[Finding]:
    outputs = [settings.output_topic, settings.dead_letter_topic]
    memory = {changes: topic for topic, changes in settings.changelogs.items()}
    compacted = [*memory, *settings.tables(task).values()]
    names = [*settings.input_topics, *outputs, *compacted]
    states = describe_topics(settings.admin_conf(), names)
    may = probe.permissions(settings, [name for name in names if states[name] is not None])
    largest = max((states[n].max_message_bytes for n in settings.input_topics if states[n]), default=0)  # type: ignore[union-attr]
    for name in names:
        state = states[name]
        if state is None:
            remedy = f"consumer topics create {settings.task}"
            yield Finding(f"topic {name}", "fail", "does not exist, or this user may not see it", remedy)
            continue
        rights = ["WRITE"] if name in outputs else ["READ", "WRITE"] if name in memory else ["READ"]
        if may.get(name) and (missing := [right for right in rights if right not in may[name]]):
            right = " and ".join(missing)
            yield Finding(
                f"topic {name}", "fail", f"this user may not {right}", f"grant {right} on the topic"
            )
        elif name in compacted:
            yield _compacted(state, states[memory[name]] if name in memory else None)
        elif name == settings.dead_letter_topic:
            yield from _topic(state, is_input=False, least_bytes=largest)
        else:
            yield from _topic(state, is_input=name in settings.input_topics, least_bytes=0)


def _compacted(state: TopicState, source: TopicState | None) -> Finding:
    """A table, or the topic of keyed state, which needs a partition for each of its `source`."""
    what, wanted = f"topic {state.name}", 0 if source is None else source.partitions
    if "compact" not in state.cleanup_policy:
        return Finding(
            what,
            "fail",
            f"has cleanup.policy={state.cleanup_policy}: what is old and still holds would be deleted",
            f"set cleanup.policy=compact on {state.name}",
        )
    if state.partitions < wanted:
        remedy = f"kafka-topics --alter --topic {state.name} --partitions {wanted}"
        return Finding(what, "fail", f"has {state.partitions} partitions, the input {wanted}", remedy)
    return Finding(what, "ok", f"{state.partitions} partitions, compacted")


def _topic(state: TopicState, *, is_input: bool, least_bytes: int) -> Iterator[Finding]:
    what = f"topic {state.name}"
    size = f"records up to {state.max_message_bytes:,} bytes"
    facts = f"{state.partitions} partitions, {state.replication} replicas, {size}"
    problems: list[tuple[Level, str, str]] = []
    if state.min_insync_replicas > state.replication:
        problems.append(
            (
                "fail",
                f"min.insync.replicas is {state.min_insync_replicas} with {state.replication} replicas: nothing "
                "can be written",
                "add replicas, or lower min.insync.replicas",
            )
        )
    if state.max_message_bytes < least_bytes:
        problems.append(
            (
                "warn",
                f"takes {state.max_message_bytes:,} bytes, the inputs {least_bytes:,}: the largest dead letters "
                "are shortened",
                f"set max.message.bytes of {state.name} above {least_bytes}",
            )
        )
    if not is_input and "compact" in state.cleanup_policy:
        problems.append(
            (
                "warn",
                "is compacted: of several results with one key only the last stays",
                "set cleanup.policy=delete if every result counts",
            )
        )
    if is_input and state.partitions == 1:
        problems.append(
            (
                "warn",
                "has one partition: a second worker would have nothing to do",
                f"add partitions: kafka-topics --alter --topic {state.name} --partitions 6",
            )
        )
    for level, detail, remedy in problems:
        yield Finding(what, level, detail, remedy)
    if not problems:
        yield Finding(what, "ok", facts)


def _group(settings: Settings) -> Iterator[Finding]:
    refusal = probe.group_refusal(settings)
    if refusal:
        yield Finding(
            "group", "fail", f"{settings.group_id}: {refusal}", "grant READ and DESCRIBE on the group"
        )
    else:
        yield Finding("group", "ok", settings.group_id)


def _transactions(settings: Settings) -> Iterator[Finding]:
    begun_s = time.monotonic()
    probe.try_transaction(settings)
    yield Finding(
        "transactions", "ok", f"begun and aborted one in {(time.monotonic() - begun_s) * 1000:.0f} ms"
    )


def _registry(settings: Settings, task: Task | None) -> Iterator[Finding]:
    registry = registry_of(settings)
    if registry is None:
        return
    with suppress(BadRecord):  # an answer too: that there is no schema of this id says nothing against it
        registry.definitions(1)
    yield Finding("registry", "ok", f"{settings.schema_registry_url} answers")


def _schemas(settings: Settings, task: Task) -> Iterator[Finding]:
    folders = schema_folders(settings, type(task))
    event, *others = [event_schema(name, folders) for name in task.events]
    result = result_schema(task.result, folders)
    value = Encoder(event).encode_many([dict(task.example)])[0]
    if isinstance(value, BadRecord):
        detail = f"the task's example is not an event of {task.events[0]}: {value.detail}"
        yield Finding("schemas", "fail", detail, f"correct {type(task).__name__}.example")
        return
    back = Decoder(event, fields=task.fields).decode_many([value])[0]
    if isinstance(back, BadRecord):
        yield Finding(
            "schemas", "fail", f"the task's example cannot be read back: {back}", "correct the task's fields"
        )
        return
    names = ", ".join(schema.name for schema in (event, *others, result))
    yield Finding("schemas", "ok", f"{names}; the example is {len(value):,} bytes")


def _model(settings: Settings, task: Task) -> Iterator[Finding]:
    device = Device()
    if task.on_device:
        device = choose_device(settings.device, settings.precision)
        if device.name == "cpu" and settings.device == "auto":
            yield Finding("gpu", "ok", "none seen, the CPU is used")
        else:
            yield Finding("gpu", "ok", f"{device.name} is used")
    begun_s = time.monotonic()
    task.load(device)
    seconds = time.monotonic() - begun_s
    detail = f"version {task.version} loaded on {device.name} ({device.precision}) in {seconds:.1f} s"
    yield Finding("model", "ok", detail)


def _example(settings: Settings, task: Task) -> Iterator[Finding]:
    """The task's example on the whole way of an event, from its bytes to those of its result."""
    folders = schema_folders(settings, type(task))
    schema = event_schema(task.events[0], folders)
    values: list[Any] = list(Encoder(schema).encode_many([dict(task.example)]))
    events = Decoder(schema, fields=task.fields).decode_many(values)
    if task.tables and not hasattr(task, "table"):
        task.table = {name: {} for name in task.tables}
    recalled = [task.recall(dict(task.example), State())]
    outputs = [
        as_item(made) for made in isolate(lambda e: task.prepare(e, recalled), events, stage="prepare")
    ]
    if not isinstance(outputs[0], BadRecord):
        items = [outputs[0].value]
        outputs = isolate(lambda i: task.fetch(task.compute(task.stage(i))), items, stage="run")
    record: Any = SimpleNamespace(
        topic=lambda: settings.input_topics[0],
        partition=lambda: 0,
        offset=lambda: 0,
        key=lambda: b"example",
        value=lambda: values[0],
        headers=lambda: None,
        timestamp=lambda: (1, 0),
    )
    letters = Letters(settings.dead_letter_topic, task, settings.group_id)
    encoder, place = Encoder(result_schema(task.result, folders)), (settings.input_topics[0], 0)
    store = Store() if task.stateful else None
    if store is not None:
        store.open(place, 1)
    finisher = Finisher(task, encoder, settings.output_topic, letters, store)
    chunk = Chunk(0, [record], {place: 1}, {place: 1}, len(values[0]), time.monotonic_ns())
    finished, rejected, silent = finisher.finish(chunk, events, outputs, None)
    if rejected:
        detail = f"the task's example fails in {rejected[0].stage}: {rejected[0]}"
        yield Finding("example", "fail", detail, f"correct {type(task).__name__}, its example or its schema")
    elif silent:
        yield Finding("example", "ok", "is an event without a result")
    else:
        size = f"{len(finished.values[0]):,} bytes"
        yield Finding("example", "ok", f"prepared, run and finished: its result is {size}")


def _ports(settings: Settings) -> Iterator[Finding]:
    port = settings.metrics_port
    if not port:
        return
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError as error:
            remedy = "choose another metrics_port, or stop what listens there"
            yield Finding("ports", "fail", f"metrics_port {port} cannot be used: {error.strerror}", remedy)
            return
    yield Finding("ports", "ok", f"metrics_port {port} is free")


def _security(settings: Settings) -> Iterator[Finding]:
    protocol = str(settings.kafka.get("security.protocol", "plaintext")).lower()
    if str(settings.kafka.get("enable.ssl.certificate.verification", "true")).lower() == "false":
        remedy = "name the authority in ssl.ca.location instead"
        yield Finding(
            "security", "warn", "the brokers' certificates are not verified: anyone can pose as them", remedy
        )
    if protocol == "sasl_plaintext":
        yield Finding(
            "security", "warn", "the password travels in the clear", "use security.protocol=sasl_ssl"
        )
