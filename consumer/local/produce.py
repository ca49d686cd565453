"""`consumer produce`: events from files into a topic, encoded as any producer of the project's events should."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from consumer.codec import Encoder, load_schema
from consumer.config import Settings
from consumer.errors import BadRecord, Fatal, Retry
from consumer.exits import Exit
from consumer.local import mails
from consumer.local.topics import describe_topics
from consumer.lookup import registry_of, schema_folders
from consumer.records import Event

__all__ = ["emails", "produce"]

_SLICE = 100
_FLUSH_S = 30.0


def emails(
    *, mbox: Path | None = None, maildir: Path | None = None, avro: Path | None = None
) -> Iterator[Event]:
    """E-mails from one of the places, else from the public SpamAssassin corpus.

    Raises Fatal for more than one place, and for one that is not there or has no mail in it.
    """
    if sum(place is not None for place in (mbox, maildir, avro)) > 1:
        raise Fatal("name one of --mbox, --maildir and --avro", exit_code=Exit.USAGE)
    if mbox is not None:
        labelled = mails.from_mbox(mbox)
    elif maildir is not None:
        labelled = mails.from_maildir(maildir)
    elif avro is not None:
        labelled = mails.from_avro(avro)
    else:
        labelled = mails.spam_assassin(console=Console(stderr=True))
    first = next(labelled, None)
    if first is None:
        raise Fatal(f"no mail found in {mbox or maildir or avro}", exit_code=Exit.USAGE)
    return (event for event, _ in chain([first], labelled))


def produce(
    settings: Settings,
    topic: str,
    schema_name: str,
    events: Iterable[Event],
    *,
    key: Callable[[Event], str] = lambda event: str(event.get("from") or event["id"]),
    count: int | None = None,
    rate_per_s: float | None = None,
) -> int:
    """Send `events`; returns how many are in the topic.

    The key is the sender's where there is one, so that the events of one sender stay in order.  Raises Fatal for a
    topic that is not there and for an event that does not fit the schema, Retry when the brokers do not take all.
    """
    if describe_topics(settings.admin_conf(), [topic])[topic] is None:
        # Sending to it would make it, with the brokers' defaults, where they are set up to do so.
        raise Fatal(
            f"topic {topic} does not exist: make the topics of the task that reads it (consumer topics create TASK), "
            "or correct the name",
            exit_code=Exit.USAGE,
        )
    schema = load_schema(schema_name, schema_folders(settings))
    registry = registry_of(settings)
    schema_id = None if registry is None else registry.register(f"{topic}-value", schema.text)
    encoder = Encoder(schema, schema_id=schema_id)
    failed: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failed.append(error)

    producer = Producer(settings.producer_conf())
    sent = 0
    with _progress() as progress:
        bar = progress.add_task(topic, total=count)
        for event in _paced(islice(events, count), rate_per_s):
            value = encoder.encode_many([event])[0]
            if isinstance(value, BadRecord):
                raise Fatal(f"event {event.get('id')!r} cannot be sent: {value}")
            _send(producer, topic, key(event).encode(), value, delivered)
            sent += 1
            if rate_per_s is not None or sent % _SLICE == 0:
                producer.poll(0)
                progress.update(bar, completed=sent)
        progress.update(bar, completed=sent)
    left = producer.flush(_FLUSH_S)
    if failed or left:
        why = failed[0].str() if failed else f"no answer within {_FLUSH_S:.0f} s"
        raise Retry(f"{len(failed) + left:,} of {sent:,} events did not reach topic {topic}: {why}")
    return sent


def _send(
    producer: Producer,
    topic: str,
    key: bytes,
    value: bytes,
    delivered: Callable[[KafkaError | None, Message], None],
) -> None:
    while True:
        try:
            producer.produce(topic, key=key, value=value, on_delivery=delivered)
            return
        except BufferError:
            producer.poll(0.1)
        except KafkaException as error:
            raise Fatal(
                f"topic {topic} does not take an event of {len(value):,} bytes: {error.args[0].str()}"
            ) from error


def _paced(events: Iterable[Event], rate_per_s: float | None) -> Iterator[Event]:
    """The same, each no sooner than its turn."""
    begun_s = time.monotonic()
    for number, event in enumerate(events):
        if rate_per_s is not None:
            time.sleep(max(0.0, begun_s + number / rate_per_s - time.monotonic()))
        yield event


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
