"""Proof 5: whatever bytes come, the decoder answers with an event or a `BadRecord`, in bounded memory and time."""

from __future__ import annotations

import gc
import json
import random
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.codec import Decoder, Encoder, Schema, load_schema
from consumer.columns import varint
from consumer.errors import BadRecord
from tests.unit.avro_data import PATIENT, rows_of

PAYLOADS = 120_000
SEED = 20_260_101
CHUNK = 500
MAX_CHUNK_S = 5.0
"""For 500 payloads of at most 2 kB; 0.1 s of CPU on an idle machine."""
MAX_BOMB_S = 2.0
"""For one payload of a quarter of a megabyte; 0.1 s of CPU on an idle machine."""

EVERYTHING = Schema.parse(
    json.dumps(
        {
            "type": "record",
            "name": "Everything",
            "fields": [
                {"name": "id", "type": "string"},
                {"name": "yes", "type": "boolean"},
                {"name": "int", "type": "int"},
                {"name": "float", "type": "float"},
                {"name": "double", "type": "double"},
                {"name": "raw", "type": "bytes"},
                {"name": "four", "type": {"type": "fixed", "name": "Four", "size": 4}},
                {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["a", "b", "c"]}},
                {"name": "any", "type": ["null", "long", "string", {"type": "array", "items": "Kind"}]},
                {"name": "lists", "type": {"type": "array", "items": {"type": "array", "items": "boolean"}}},
                {
                    "name": "maps",
                    "type": {
                        "type": "map",
                        "values": {
                            "type": "record",
                            "name": "Deep",
                            "fields": [{"name": "map", "type": {"type": "map", "values": ["null", "bytes"]}}],
                        },
                    },
                },
                {"name": "more", "type": {"type": "array", "items": "Deep"}},
            ],
        }
    )
)
EMAIL = load_schema("email")
SCHEMAS = [EMAIL, load_schema("click"), EVERYTHING]
REASONS = {
    "empty",
    "bad_frame",
    "unknown_schema",
    "unknown_schema_id",
    "truncated",
    "trailing_bytes",
    "bad_utf8",
    "wrong_type",
    "too_large",
    "incompatible_schema",
}
HOSTILE_NUMBERS = [
    varint(number)
    for number in (-1, -2, -64, 63, 64, 1 << 20, 1 << 31, -(1 << 31), (1 << 63) - 1, -(1 << 63), 1 << 40)
] + [b"\xff" * 9 + b"\x01", b"\xff" * 12, b"\x80" * 9 + b"\x02", b"\x80" * 30 + b"\0", b"\x81" + b"\x80" * 9]


def decoders(schema: Schema) -> list[Decoder]:
    """All ways to read: whole, some fields, and as an older or a newer version with other fields."""
    raw = json.loads(schema.text)
    raw["fields"] = [
        raw["fields"][0],
        *raw["fields"][2:-1],
        {"name": "new", "type": ["null", "string"], "default": None},
    ]
    other = Schema.parse(json.dumps(raw))
    some = [field["name"] for field in schema.definition["fields"]][1:-1:3]
    return [Decoder(schema), Decoder(schema, fields=some), Decoder(other, [schema])]


def check(values: Sequence[bytes], events: Sequence[Any]) -> Counter[str]:
    """Each value has an event or a BadRecord with a reason, and no text in its detail; counts the outcomes."""
    assert len(events) == len(values)
    for value, event in zip(values, events, strict=True):
        if type(event) is BadRecord:
            assert event.reason in REASONS, (value, event)
            assert event.detail and len(event.detail) < 600
        else:
            assert type(event) is dict, (value, event)
    return Counter(event.reason if type(event) is BadRecord else "event" for event in events)


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.name)
@PATIENT
@given(data=st.data())
def test_what_was_written_is_read_by_every_reader(schema: Schema, data: st.DataObject) -> None:
    rows = data.draw(st.lists(rows_of(schema), max_size=3))
    values = Encoder(schema).encode_many(rows)
    whole, some, other = (decoder.decode_many(values) for decoder in decoders(schema))  # type: ignore[arg-type]
    assert whole == rows
    for row, part, version in zip(rows, some, other, strict=True):
        assert isinstance(part, dict) and part.items() <= row.items()
        assert (
            isinstance(version, dict)
            and {k: v for k, v in version.items() if k != "new"}.items() <= row.items()
        )


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.name)
@PATIENT
@given(data=st.data())
def test_any_bytes_are_an_event_or_a_bad_record(schema: Schema, data: st.DataObject) -> None:
    frame = st.sampled_from([b"", schema.prefix, schema.prefix[:2], b"\0\0\0\0\1"])
    values = data.draw(st.lists(st.builds(bytes.__add__, frame, st.binary(max_size=200)), max_size=5))
    for decoder in decoders(schema):
        check(values, decoder.decode_many(values))


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.name)
@PATIENT
@given(data=st.data())
def test_every_truncation_and_every_trailing_byte_is_found(schema: Schema, data: st.DataObject) -> None:
    (value,) = Encoder(schema).encode_many(data.draw(st.lists(rows_of(schema), min_size=1, max_size=1)))
    assert isinstance(value, bytes)
    cut = value[: data.draw(st.integers(10, len(value) - 1))]
    longer = value + data.draw(st.binary(min_size=1, max_size=20))
    for decoder in decoders(schema):
        outcomes = [
            event.reason for event in decoder.decode_many([cut, longer]) if isinstance(event, BadRecord)
        ]
        assert outcomes == ["truncated", "trailing_bytes"]


def flip(rng: random.Random, value: bytes, others: Sequence[bytes]) -> bytes:
    mutant = bytearray(value)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.randrange(len(mutant))
        mutant[at] ^= 1 << rng.randrange(8)
    return bytes(mutant)


def truncate(rng: random.Random, value: bytes, others: Sequence[bytes]) -> bytes:
    return value[: rng.randrange(len(value))]


def splice(rng: random.Random, value: bytes, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others)
    return value[: rng.randrange(len(value))] + other[rng.randrange(len(other)) :]


def number(rng: random.Random, value: bytes, others: Sequence[bytes]) -> bytes:
    """A hostile length, count or index over some bytes of the datum."""
    at = rng.randrange(10, len(value) + 1)
    return value[:at] + rng.choice(HOSTILE_NUMBERS) + value[at + rng.randrange(3) :]


def blocks(rng: random.Random, value: bytes, others: Sequence[bytes]) -> bytes:
    """Block counts in block counts, with and without their sizes in bytes."""
    at = rng.randrange(10, len(value) + 1)
    bomb = b"".join(
        rng.choice([varint(1 << 16), varint(-5) + varint(1 << 30), b"\x02"]) for _ in range(rng.randrange(40))
    )
    return value[:at] + bomb + value[at:]


def noise(rng: random.Random, value: bytes, others: Sequence[bytes]) -> bytes:
    return value[: rng.choice((0, 2, 10, 30))] + rng.randbytes(rng.randrange(100))


MUTATIONS: list[Callable[[random.Random, bytes, Sequence[bytes]], bytes]] = [
    flip,
    truncate,
    splice,
    number,
    blocks,
    noise,
]


def _samples(rng: random.Random) -> dict[str, dict[str, Any]]:
    text = "".join(rng.choices("abcdefghij äöü€😀", k=rng.randrange(200)))
    return {
        "consumer.Email": {
            "id": f"m-{rng.random()}",
            "received_at": rng.getrandbits(41),
            "from": rng.choice([None, "a@b.example"]),
            "to": ["c@d.example"] * rng.randrange(4),
            "subject": text[:30],
            "body": text * rng.randrange(4),
            "html": rng.choice([None, f"<p>{text}"]),
            "headers": {f"x-{i}": text[:i] for i in range(rng.randrange(6))},
        },
        "consumer.Click": {
            "id": f"c-{rng.random()}",
            "user": "u",
            "product": text[:20],
            "kind": "cart",
            "time": rng.getrandbits(41),
        },
        "Everything": {
            "id": text[:9],
            "yes": True,
            "int": rng.getrandbits(31),
            "float": 0.5,
            "double": rng.random(),
            "raw": rng.randbytes(9),
            "four": b"1234",
            "kind": "b",
            "any": rng.choice([None, 7, text, ["a", "c"]]),
            "lists": [[True], [], [False, True]],
            "maps": {"k": {"map": {"a": None, "b": b"b"}}},
            "more": [{"map": {"c": None}}] * rng.randrange(3),
        },
    }


def test_fuzzed_payloads() -> None:
    rng = random.Random(SEED)
    samples = [_samples(rng) for _ in range(40)]
    corpora: dict[str, list[bytes]] = {
        schema.name: Encoder(schema).encode_many([sample[schema.name] for sample in samples])  # type: ignore[misc]
        for schema in SCHEMAS
    }
    everything = [value for corpus in corpora.values() for value in corpus]
    readers = [(decoder, corpora[schema.name]) for schema in SCHEMAS for decoder in decoders(schema)]
    outcomes: Counter[str] = Counter()
    while outcomes.total() < PAYLOADS:
        decoder, corpus = readers[outcomes.total() // CHUNK % len(readers)]
        values = [rng.choice(MUTATIONS)(rng, rng.choice(corpus), everything) for _ in range(CHUNK)]
        started = time.process_time()
        events = decoder.decode_many(values)
        took_s = time.process_time() - started
        outcomes += check(values, events)
        assert took_s < MAX_CHUNK_S
    print(outcomes)
    assert outcomes.keys() == REASONS - {"too_large", "incompatible_schema"} | {"event"}
    assert outcomes["event"] < PAYLOADS / 4


def _bombs() -> dict[str, bytes]:
    """Short headers that promise much, and a long tail that keeps what it promises with as little as it can."""
    start = EMAIL.prefix + b"\x02i\x02" + b"\0"  # id, received_at, from: null; `to` is next
    body = b"\0\0\0\0"  # ends `to`; subject, body, html
    huge = varint((1 << 63) - 1)
    least = varint(-(1 << 63))
    zeros = bytes(1 << 18)
    return {
        "count": start + huge,
        "count with size": start + varint(-(1 << 62)) + huge,
        "least count": start + least + least,
        "count over zeros": start + varint(1 << 18) + zeros,
        "negative count over zeros": start + varint(-(1 << 18)) + varint(0) + zeros,
        "kept count": start + varint(1 << 18) + zeros + body + b"\0",
        "many blocks": start + b"\x02\0" * (1 << 17) + body + b"\0",
        "many negative blocks": start + b"\x01\0\0" * (1 << 17),
        "map count": start + body + huge,
        "map over zeros": start + body + varint(1 << 18) + zeros,
        "map with one key": start + body + varint(1 << 17) + zeros + b"\0",
        "string length": EMAIL.prefix + huge + zeros,
        "negative length": EMAIL.prefix + least + zeros,
        "endless number": EMAIL.prefix + b"\xff" * (1 << 18),
        "endless zero": EMAIL.prefix + b"\x80" * (1 << 18),
    }


@pytest.mark.parametrize(
    ("name", "value"), _bombs().items(), ids=lambda part: part if isinstance(part, str) else ""
)
@pytest.mark.parametrize("reader", range(3), ids=["whole", "fields", "version"])
def test_bombs_cost_little_memory_and_time(name: str, value: bytes, reader: int) -> None:
    decoder = decoders(EMAIL)[reader]
    started = time.process_time()
    outcomes = check([value], decoder.decode_many([value]))
    assert time.process_time() - started < MAX_BOMB_S
    if not (name.startswith(("kept", "many blocks", "map with"))):
        assert outcomes["event"] == 0
    tracemalloc.start()
    try:
        decoder.decode_many([value])
        assert tracemalloc.get_traced_memory()[1] < 16 * len(value) + (1 << 20)
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_bad_records() -> None:
    """Nor may it wait for the garbage collector: an exception that is kept would hold a whole chunk."""
    decoder = Decoder(EMAIL, max_record_bytes=1_000)
    rng = random.Random(SEED)

    def bad() -> list[bytes]:
        unknown = [b"\0" + rng.randbytes(20) for _ in range(5_000)]
        return unknown + [rng.randbytes(2_000) for _ in range(200)] + [EMAIL.prefix + b"\xff" * 20] * 200

    decoder.decode_many(bad())
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(3):
            decoder.decode_many(bad())
        assert tracemalloc.get_traced_memory()[0] < 1 << 20
    finally:
        tracemalloc.stop()
        gc.enable()
