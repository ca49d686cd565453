"""Every setting of the product in one frozen object: its unit, its default and the reason for it.

`Settings(...)` takes values as they are; `layers.load` gathers them: flags > environment `CONSUMER_...` > TOML file >
defaults.  Strings that are empty and budgets that are None are the task's to say: `Settings.for_task` fills them in.
"""

from __future__ import annotations

import os
import re
import socket
import uuid
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    ByteSize,
    Field,
    PrivateAttr,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from consumer.errors import Fatal
from consumer.exits import Exit
from consumer.properties import admin_conf, consumer_conf, problems, producer_conf
from consumer.secret import reveal, seal
from consumer.task import Budget, Task

__all__ = ["Settings"]

MIB = 1 << 20
_PROCESS = f"{socket.gethostname()}:{uuid.uuid4().hex[:12]}"
"""Names this process: host name and process id are not enough where containers share them."""


def _names(value: Any) -> Any:
    return (
        tuple(filter(None, (part.strip() for part in value.split(",")))) if isinstance(value, str) else value
    )


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)]
Milliseconds = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


def _field(panel: str, default: Any, description: str, **limits: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"panel": panel}, **limits)


class Settings(BaseSettings):
    """What is in force.  Raises pydantic's ValidationError; `load` turns it into a readable `Fatal`."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="CONSUMER_",
        env_ignore_empty=True,
        hide_input_in_errors=True,
        validate_default=True,
    )
    _events: dict[str, str] = PrivateAttr(default_factory=dict)
    _changelogs: dict[str, str] = PrivateAttr(default_factory=dict)
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)  # where `load` found each value

    bootstrap_servers: str | None = _field(
        "Kafka",
        None,
        "Brokers to ask first, as host:port[,host:port]. `consumer broker` starts one to try things with.",
    )
    task: str = _field(
        "Task", "", "What to do with the events: a shipped task (spam) or your own (package.module:Class)."
    )
    task_options: dict[str, Any] = _field(
        "Task",
        {},
        "Arguments for the task's constructor (--option key=value). Names ending in password, token or "
        "api_key are kept secret and may come from a file: api_key_file=/run/secrets/key.",
    )
    group_id: str = _field(
        "Kafka", "", "Consumer group; workers of one group share the work. Default consumer-<task>."
    )
    instance_name: str = _field(
        "Kafka",
        "",
        "A name that survives restarts and no other worker has (a StatefulSet's pod name). A restart then "
        "resumes at once, without a rebalance, and closes what its predecessor left open. Without it "
        "every start has a new name, and a crash holds readers up for transaction_timeout_ms.",
    )
    input_topics: Names = _field(
        "Topics",
        (),
        "Topics to read, separated by commas. Default: the task's events + s. Of a task that reads several kinds of "
        "events, a topic of another name says its kind: spam_verdict=my-verdicts.",
    )
    output_topic: str = _field("Topics", "", "Topic for the results. Default: the task's result + s.")
    dead_letter_topic: str = _field(
        "Topics", "", "Topic for records that could not be processed. Default: <task>_dead_letters."
    )
    auto_offset_reset: Literal["earliest", "latest", "error"] = _field(
        "Kafka", "earliest", "Where a group starts that has never committed. earliest: nothing is left out."
    )
    kafka: dict[str, Any] = _field(
        "Kafka",
        {},
        "Any librdkafka property (-X key=value, [kafka] in TOML), for TLS and SASL above all. A secret may "
        "come from a file: sasl.password.file=/run/secrets/kafka. What would break exactly-once is refused.",
    )

    schema_registry_url: str | None = _field(
        "Schemas",
        None,
        "Confluent-compatible schema registry. None: results carry the fingerprint of their schema.",
    )
    schema_registry_user: str | None = _field(
        "Schemas", None, "User for the registry (basic authentication)."
    )
    schema_registry_password: SecretStr | None = _field(
        "Schemas",
        None,
        "Password for the registry; better given as a file: CONSUMER_SCHEMA_REGISTRY_PASSWORD_FILE.",
    )
    schema_registry_token: SecretStr | None = _field(
        "Schemas",
        None,
        "Bearer token for the registry, instead of user and password; may be given as a file too.",
    )
    schema_registry_ca_file: str | None = _field(
        "Schemas", None, "PEM file with the certificate authority of the registry. None: those of the system."
    )
    schema_registry_timeout_ms: Milliseconds = _field(
        "Schemas",
        5_000,
        "How long one answer of the registry may take; reading stands still meanwhile.",
        ge=100,
    )
    schema_paths: Names = _field(
        "Schemas",
        (),
        "Folders with further *.avsc files, for your own events and results; before the shipped ones.",
    )

    max_chunk_records: Count = _field(
        "Flow",
        2_000,
        "Records of one poll at most: the unit of order and commit. Larger saves little, smaller costs "
        "throughput.",
    )
    gather_ms: Milliseconds = _field(
        "Flow",
        2,
        "Under load, how long a poll goes on collecting after its first record: fills chunks. At a light load a poll "
        "takes what is there and does not wait.",
    )
    max_in_flight_records: Count = _field(
        "Flow",
        20_000,
        "Records between poll and commit at most; reading pauses at it. Bounds memory, not speed.",
    )
    max_in_flight_bytes: ByteSize = _field(
        "Flow", ByteSize(64 * MIB), "The same in bytes; half as much again is prefetched.", ge=MIB
    )
    max_prepared_bytes: ByteSize = _field(
        "Flow",
        ByteSize(256 * MIB),
        "Bytes of prepared items (decoded pictures above all) that wait for the device or are on it; preparing pauses "
        "at it. 1 KB of video holds megabytes of pictures, so max_in_flight_bytes cannot bound them.",
        ge=1,
    )
    max_record_bytes: ByteSize = _field(
        "Flow",
        ByteSize(8 * MIB),
        "Larger values are not decoded but become dead letters: one record must not take "
        "the memory of all. Base64 mail with attachments stays below.",
        ge=1,
    )
    commit_interval_ms: Milliseconds = _field(
        "Flow",
        5,
        "Least time from the begin of one transaction to that of the next; a transaction itself takes about 6 ms. "
        "Larger trades latency (half of it on average) for less load on the brokers: with many workers take 20 to 50.",
    )
    transaction_timeout_ms: Milliseconds = _field(
        "Flow",
        10_000,
        "When the broker gives up a transaction of a worker that died. Short, because readers wait for it.",
        ge=1_000,
    )
    session_timeout_ms: Milliseconds = _field(
        "Flow",
        10_000,
        "After how long without heartbeat a worker counts as dead and others take over. Brokers refuse "
        "less than group.min.session.timeout.ms (6000 by default).",
        ge=1_000,
    )
    max_poll_interval_ms: Milliseconds = _field(
        "Flow",
        300_000,
        "How long the loop may fail to poll before the worker counts as stuck. The model runs on its "
        "own thread, so a slow model never uses this up.",
        ge=1_000,
    )
    revoke_deadline_ms: Milliseconds = _field(
        "Flow",
        10_000,
        "How long a rebalance may wait for the transaction in flight before its partitions go.",
    )
    drain_deadline_ms: Milliseconds = _field(
        "Flow",
        20_000,
        "How long a stop (SIGTERM) may take to finish and commit what is in flight. Below Kubernetes' "
        "terminationGracePeriodSeconds of 30.",
    )
    startup_timeout_ms: Milliseconds = _field(
        "Flow",
        60_000,
        "How long to wait for brokers and topics at the start before giving up with exit code 4.",
    )

    max_batch_items: Count | None = _field(
        "Batches", None, "Events of one model call at most. None: the task's own."
    )
    max_batch_tokens: Count | None = _field(
        "Batches", None, "Padded tokens of one model call at most: longest x count. None: the task's own."
    )
    max_batch_bytes: ByteSize | None = _field(
        "Batches", None, "Bytes of prepared input of one model call at most. None: the task's own.", ge=1
    )
    max_batch_age_ms: float | None = _field(
        "Batches",
        None,
        "How long the oldest event waits for company while the device is idle. None: the task's own.",
        ge=0,
    )
    prepare_threads: Count = _field(
        "Batches",
        max(1, min(4, (os.cpu_count() or 2) - 1)),
        "Threads that tokenise and decode images. One core is "
        "left to the loop; beyond 4 the interpreter lock eats the gain.",
    )
    prepare_slice: Count | None = _field(
        "Batches",
        None,
        "Events that one prepare call gets: enough to make up for the hand-over, few enough to share. None: the "
        "task's own.",
    )
    device: str = _field(
        "Model",
        "auto",
        "cpu, cuda, cuda:N or mps; auto takes the best one present.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _field(
        "Model",
        "auto",
        "Number format of the model; auto takes the fastest that passes the task's tolerance check.",
    )
    torch_threads: Count | None = _field(
        "Model",
        None,
        "CPU threads of one model call. None: torch's own choice, one a core; less when workers share.",
    )

    dead_letter_max_share: float = _field(
        "Dead letters",
        0.5,
        "Largest share of dead letters within dead_letter_window before the worker stops: a bad "
        "release must not drain the topic. 1 = off.",
        gt=0,
        le=1,
    )
    dead_letter_window: Count = _field("Dead letters", 1_000, "Records over which the share is taken.")
    dead_letter_max_run: int = _field(
        "Dead letters", 200, "So many dead letters in a row stop the worker. 0 = off.", ge=0
    )

    state_topic: str = _field(
        "State",
        "",
        "Compacted topic in which a stateful task's memory is kept, with as many partitions as its input. Empty: "
        "<group_id>-state. A task that reads several topics has one for each: <state_topic>-<topic>.",
    )
    state_ttl_ms: Milliseconds | None = _field(
        "State",
        None,
        "How long the memory of a key lives after its last change, by the records' own time. None: for ever.",
        ge=1,
    )
    state_max_bytes: ByteSize = _field(
        "State",
        ByteSize(64 << 10),
        "Memory of one key at most, as JSON; an event that wants more becomes a dead letter. Below what a topic takes.",
        ge=16,
        le=900_000,
    )

    table_topics: Names = _field(
        "State",
        (),
        "Topics of the task's tables where they are not called like these: TABLE=TOPIC,TABLE=TOPIC.",
    )

    metrics_port: int | None = _field(
        "Logs and metrics",
        None,
        "Port for Prometheus (0 = any free one). None: no port is opened.",
        ge=0,
        le=65_535,
    )
    trace_topic: str = _field(
        "Logs and metrics",
        "otlp_spans",
        "Topic for spans, in OTLP protobuf, where OTEL_EXPORTER_OTLP_ENDPOINT names no collector; `consumer traces` "
        "reads it. Without the topic spans are dropped. Empty: none are made.",
    )
    log_format: Literal["auto", "pretty", "json"] = _field(
        "Logs and metrics", "auto", "json: one object a line; pretty: for people; auto: pretty on a terminal."
    )
    log_level: Literal["debug", "info", "warning", "error"] = _field(
        "Logs and metrics", "info", "Least weight of what is logged."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)  # `layers.load` reads the others and remembers which

    @field_validator("kafka", "task_options", mode="before")
    @classmethod
    def _seal(cls, value: Any) -> Any:
        return seal(value) if isinstance(value, dict) else value

    @field_validator("kafka")
    @classmethod
    def _as_text(cls, value: dict[str, Any]) -> dict[str, Any]:
        return {k: str(v).lower() if isinstance(v, bool) else v for k, v in value.items()}

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
            raise ValueError("must be auto, cpu, cuda, cuda:N (such as cuda:0) or mps")
        return device

    @field_validator("table_topics")
    @classmethod
    def _named_tables(cls, topics: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [each for each in topics if not re.fullmatch(r"[^=]+=[^=]+", each)]:
            raise ValueError(f"must be TABLE=TOPIC; {wrong[0]!r} is not")
        return topics

    @field_validator("instance_name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9._-]{0,200}", name):
            raise ValueError("may only have letters, digits, dots, underscores and dashes, 200 at most")
        return name

    @field_validator("schema_registry_url")
    @classmethod
    def _plain_url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        if not re.match(r"https?://[^/]", url):
            raise ValueError("must begin with http:// or https:// and name a host")
        if "@" in url.split("://", 1)[1].split("/", 1)[0]:
            raise ValueError(
                "must not carry a user or a password, URLs end up in logs: use schema_registry_user and "
                "schema_registry_password"
            )
        return url.rstrip("/")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        wrong = list(problems(self.kafka, self.transaction_timeout_ms, self.session_timeout_ms))
        for smaller, larger, why in _ORDER:
            if getattr(self, smaller) > getattr(self, larger):
                wrong.append(
                    f"{smaller} ({getattr(self, smaller)}) must not exceed {larger} "
                    f"({getattr(self, larger)}): {why}"
                )
        if self.instance_name and self.kafka.get("group.protocol") == "consumer":
            wrong.append(
                "group.protocol=consumer excludes instance_name: under it Kafka refuses a named worker that restarts "
                "before its session has ended"
            )
        if self.schema_registry_token and self.schema_registry_password:
            wrong.append("schema_registry_token and schema_registry_password exclude each other")
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    def for_task(self, task: Task | type[Task]) -> Settings:
        """The same with everything filled in that the task decides: group, topics and batch budget."""
        own = {
            "task": self.task or task.name,
            "group_id": f"consumer-{task.name}",
            "output_topic": f"{task.result}s",
            "dead_letter_topic": f"{task.name}_dead_letters",
            "max_batch_items": task.budget.max_batch_items,
            "max_batch_tokens": task.budget.max_batch_tokens,
            "max_batch_bytes": task.budget.max_batch_bytes,
            "max_batch_age_ms": task.budget.max_batch_age_ms,
            "prepare_slice": task.prepare_slice,
        }
        missing = {name: value for name, value in own.items() if getattr(self, name) in (None, "", ())}
        if task.stateful and not self.state_topic:
            missing["state_topic"] = f"{missing.get('group_id', self.group_id)}-state"
        named = self.input_topics or tuple(f"{event}s" for event in task.events)
        topics = self._events or _events_by_topic(named, task)
        missing["input_topics"] = tuple(topics)
        filled = self.model_copy(update=missing)
        filled._events = topics
        filled._changelogs = _changelogs(filled.state_topic, topics, task)
        given = {"input_topics"} if self.input_topics else set()
        filled._origins = self._origins | dict.fromkeys(missing.keys() - given, f"task {task.name}")
        for topic in (filled.output_topic, filled.dead_letter_topic):
            if topic in filled.input_topics:
                raise Fatal(
                    f"topic {topic} is both read and written: every result would come back as an event. "
                    "Give input_topics, output_topic and dead_letter_topic different names",
                    exit_code=Exit.USAGE,
                )
        used = {*filled.input_topics, filled.output_topic, filled.dead_letter_topic}
        if doubled := sorted(used.intersection(filled.changelogs.values())):
            raise Fatal(
                f"state_topic {doubled[0]} is used for events or results: give it a topic of its own",
                exit_code=Exit.USAGE,
            )
        return filled

    def tables(self, task: Task | type[Task]) -> dict[str, str]:
        """Table -> topic, of all the task's tables.  Raises Fatal for a name that is none of them."""
        named = dict(each.split("=") for each in self.table_topics)
        if unknown := sorted(named.keys() - task.tables.keys()):
            raise Fatal(
                f"table_topics names {unknown[0]}, but task {task.name} has "
                + (f"the tables {', '.join(task.tables)}" if task.tables else "no tables"),
                exit_code=Exit.USAGE,
            )
        return {name: named.get(name, name) for name in task.tables}

    @property
    def events_by_topic(self) -> dict[str, str]:
        """Input topic -> kind of its events; complete after `for_task`."""
        return self._events

    @property
    def changelogs(self) -> dict[str, str]:
        """Input topic -> topic of its keyed state; empty for a task without state.  Complete after `for_task`."""
        return self._changelogs

    @property
    def budget(self) -> Budget:
        """Batch limits; complete after `for_task`."""
        return Budget(
            max_batch_items=self.max_batch_items or Budget().max_batch_items,
            max_batch_tokens=self.max_batch_tokens,
            max_batch_bytes=self.max_batch_bytes,
            max_batch_age_ms=self.max_batch_age_ms or 0.0,
        )

    @property
    def transactional_id(self) -> str:
        """Stable over restarts where `instance_name` is given; else unique to this process.

        The colon is in no instance name: with a dash, worker `eu-1` of group `spam` and worker `1` of group `spam-eu`
        would throw each other out.
        """
        return f"{self.group_id}:{self.instance_name or _PROCESS}"

    def task_arguments(self) -> dict[str, Any]:
        """`task_options` with their secrets in the clear, for the task's constructor."""
        return reveal(self.task_options)

    def brokers(self) -> str:
        """`bootstrap_servers`.  Raises Fatal where none are given."""
        if not self.bootstrap_servers:
            raise Fatal(
                "no Kafka given: say --bootstrap-servers HOST:PORT or set CONSUMER_BOOTSTRAP_SERVERS; "
                "`consumer broker` starts one on this machine",
                exit_code=Exit.USAGE,
            )
        return self.bootstrap_servers

    def consumer_conf(self) -> dict[str, Any]:
        """Properties for the group's Consumer, secrets in the clear: for the client library only."""
        return consumer_conf(self)

    def producer_conf(self, transactional_id: str | None = None) -> dict[str, Any]:
        """Properties for a Producer, transactional where an id is given; secrets in the clear."""
        return producer_conf(self, transactional_id)

    def admin_conf(self) -> dict[str, Any]:
        """Properties that any client needs: where the brokers are and how to be let in; secrets in the clear."""
        return admin_conf(self)


def _events_by_topic(named: Sequence[str], task: Task | type[Task]) -> dict[str, str]:
    """Topic -> kind of event.  Raises Fatal where a topic does not say which of the task's kinds it has.

    A topic says it as `event=topic`, or has the kind's usual name; else topics stand for the kinds in their order, and
    a task of one kind may read it from many topics.
    """
    kinds, usual = task.events, {f"{event}s": event for event in task.events}
    pairs = [each.rpartition("=")[::2] for each in named]
    if len(kinds) == 1:
        pairs = [(event or kinds[0], topic) for event, topic in pairs]
    elif len(named) == len(kinds) and not any(event for event, _ in pairs):
        pairs = [(event, topic) for event, (_, topic) in zip(kinds, pairs, strict=True)]
    else:
        pairs = [(event or usual.get(topic, ""), topic) for event, topic in pairs]
    for event, topic in pairs:
        if event not in kinds:
            wrong = f"not {event!r}" if event else "and this topic does not say which of them it has"
            raise Fatal(
                f"input_topics: task {task.name} reads {', '.join(kinds)}, {wrong}: "
                f"write {kinds[0]}={topic} for a topic of {kinds[0]} events",
                exit_code=Exit.USAGE,
            )
    return {topic: event for event, topic in pairs}


def _changelogs(state_topic: str, topics: Iterable[str], task: Task | type[Task]) -> dict[str, str]:
    """Input topic -> topic of its state; state is per partition, and those of two topics have the same numbers."""
    if not task.stateful:
        return {}
    names = list(topics)
    if len(names) == 1 == len(task.events):
        return {names[0]: state_topic}
    return {name: f"{state_topic}-{name}" for name in names}


_ORDER = (
    ("commit_interval_ms", "transaction_timeout_ms", "a transaction would never be committed in time"),
    ("max_chunk_records", "max_in_flight_records", "one poll would already be over the limit"),
    ("max_record_bytes", "max_in_flight_bytes", "one record would already be over the limit"),
    ("session_timeout_ms", "max_poll_interval_ms", "librdkafka requires it"),
    ("revoke_deadline_ms", "max_poll_interval_ms", "a rebalance would cost the membership"),
    ("gather_ms", "session_timeout_ms", "a poll must come back before the worker counts as dead"),
)
