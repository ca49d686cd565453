"""`consumer bench`: how close the product comes to the limits of the client library and of the model.

Every figure is measured on processes from outside, beside its limit in the same run, and printed with the ratio:
machines differ and are noisy, ratios travel.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from consumer.codec import Decoder, Encoder, load_schema
from consumer.errors import BadRecord, Fatal
from consumer.exits import Exit
from consumer.local.broker import EmbeddedBroker
from consumer.local.child import Child, worker
from consumer.local.ledger import quantile
from consumer.local.load import Follower, fill, latencies_s, make_topic
from consumer.records import Event
from consumer.task import Item

__all__ = ["run"]

_PARTITIONS = 6
_CLICKS_PER_S = 80_000
"""Records prepared for each second of measuring."""
_LATENCY_RATE_PER_S = 500
_START_S = 60.0
_CLICK_TASK = "consumer.tasks.click_scores:ClickScores"

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Bench:
    """Where to measure, how long, and where logs go."""

    servers: str
    seconds: float
    folder: Path
    say: Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Run:
    """One process or group on one topic, between a twentieth and nineteen twentieths of it."""

    records_per_s: float
    cpu_us: float
    """Processor time of all its processes, a record."""
    rss_mib: tuple[float, ...]


def run(*, bootstrap_servers: str | None, seconds: float, only: Sequence[str], as_json: bool) -> int:
    """Measure, print a card and, as the last line, one JSON document."""
    unknown = set(only) - set(_MEASURES)
    if unknown:
        raise Fatal(
            f"no measurement {', '.join(unknown)}; there are {', '.join(_MEASURES)}", exit_code=Exit.USAGE
        )
    console = Console(stderr=as_json)
    figures: dict[str, Figures] = {}
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="consumer-bench-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        servers = bootstrap_servers or stack.enter_context(EmbeddedBroker(console=console)).bootstrap_servers
        for name in only or _MEASURES:
            with console.status(name) as status:
                bench = Bench(servers, seconds, folder, status.update)
                figures[name] = _MEASURES[name](bench)
            console.print(_card(name, figures[name]))
    print(json.dumps({name: {k: round(v, 4) for k, v in each.items()} for name, each in figures.items()}))
    return Exit.OK


# (a) The loop against a raw copy.


def _overhead(bench: Bench) -> Figures:
    topic, count = _clicks_topic(bench)
    ours, raws = [], []
    for number in range(3):
        bench.say(f"the loop, run {number + 1} of 3")
        ours.append(_measure(bench, topic, count, [_click_worker]))
        bench.say(f"raw copy, run {number + 1} of 3")
        raws.append(_measure(bench, topic, count, [_raw_copy]))
    rate, raw_rate = (statistics.median(run.records_per_s for run in runs) for runs in (ours, raws))
    stages = _stages()
    cpu = statistics.median(run.cpu_us for run in ours)
    return {
        "records_per_s": rate,
        "raw_copy_per_s": raw_rate,
        "ratio": statistics.median(
            a.records_per_s / b.records_per_s for a, b in zip(ours, raws, strict=True)
        ),
        "cpu_us": cpu,
        "raw_copy_cpu_us": statistics.median(run.cpu_us for run in raws),
        **{f"cpu_us_{stage}": value for stage, value in stages.items()},
        "cpu_us_client_and_loop": cpu - sum(stages.values()),
    }


def _clicks_topic(bench: Bench, times: int = 1) -> tuple[str, int]:
    """A topic with clicks, and how many."""
    count = int(times * bench.seconds * _CLICKS_PER_S)
    bench.say(f"sending {count:,} clicks")
    topic = make_topic(bench.servers, "bench-clicks", _PARTITIONS)
    fill(bench.servers, topic, islice(cycle([(key, value) for _, key, value in _clicks(20_000)]), count))
    return topic, count


def _clicks(count: int) -> list[tuple[str, bytes, bytes]]:
    """(id, key, value) of clicks of about 90 bytes."""
    now_ms = time.time_ns() // 1_000_000
    events: list[Event] = [
        {
            "id": f"click-{uuid.uuid4().hex[:12]}{number:09d}",
            "user": f"user-{number % 1000:012d}",
            "product": f"product-{number % 500:014d}",
            "kind": ("view", "cart", "purchase")[number % 3],
            "time": now_ms + number,
        }
        for number in range(count)
    ]
    values = Encoder(load_schema("click.1")).encode_many(events)
    return [
        (e["id"], e["user"].encode(), v) for e, v in zip(events, values, strict=True) if isinstance(v, bytes)
    ]


Start = Callable[[Bench, str, str, str, int], Child]


def _measure(bench: Bench, topic: str, count: int, starts: Sequence[Start]) -> Run:
    """Start the processes on `topic` as one new group and take rate and CPU from when all have a part of it.

    That is after a twentieth of the records at the earliest; it ends when a twentieth is left.
    """
    group = f"bench-{uuid.uuid4().hex[:8]}"
    out = make_topic(bench.servers, "bench-out", _PARTITIONS)
    follower = Follower.of(bench.servers, topic, group)
    with ExitStack() as stack:
        children = [
            stack.enter_context(start(bench, group, topic, out, number))
            for number, start in enumerate(starts)
        ]
        memory: list[float] = []
        first = _until(follower, children, count // 20)
        while follower.members() < len(children):
            first = _until(follower, children, first + 1)
        begun_s, cpu_s = time.monotonic(), sum(child.cpu_s() for child in children)
        for tenth in range(2, 20):
            last = _until(follower, children, max(first + 1, count * tenth // 20))
            memory.append(max(child.rss_mib() for child in children))
        span_s, spent_s = time.monotonic() - begun_s, sum(child.cpu_s() for child in children) - cpu_s
    return Run((last - first) / span_s, 1e6 * spent_s / (last - first), tuple(memory))


def _until(follower: Follower, children: Sequence[Child], goal: int) -> int:
    deadline = time.monotonic() + _START_S
    while (done := follower.done()) < goal:
        for child in children:
            child.require_alive()
        if time.monotonic() > deadline:
            raise Fatal(f"stuck at {done:,} of {goal:,} records:\n{children[0].log_tail()}")
        time.sleep(0.005)
    return done


def _click_worker(bench: Bench, group: str, topic: str, out: str, number: int) -> Child:
    return worker([_CLICK_TASK, *_flags(bench, group, topic, out)], bench.folder, f"{group}-{number}")


def _flags(bench: Bench, group: str, topic: str, out: str) -> list[str]:
    return [
        f"--bootstrap-servers={bench.servers}",
        f"--group-id={group}",
        f"--input-topics={topic}",
        f"--output-topic={out}",
        f"--dead-letter-topic={out}",
        "--metrics-port=0",
    ]


def _raw_copy(bench: Bench, group: str, topic: str, out: str, number: int) -> Child:
    arguments = [bench.servers, group, topic, out, "5000"]
    return Child("consumer.local.rawcopy", arguments, bench.folder, f"{group}-{number}")


def _stages() -> Figures:
    """CPU microseconds a record of the stages that are ours, each alone, in chunks of 2,000."""
    from consumer.tasks.click_scores import ClickScores

    task, size, rounds = ClickScores(), 2_000, 30
    values = [value for _, _, value in _clicks(size)]
    decoder, encoder = Decoder(load_schema("click.1")), Encoder(load_schema("click_score"))
    events = decoder.decode_many(values)
    outputs = task.run(events)  # type: ignore[arg-type]
    rows = [
        {
            "event_id": event["id"],  # type: ignore[index]
            "source_topic": "clicks",
            "source_partition": 3,
            "source_offset": 12_345_678,
            "model": task.name,
            "model_version": task.version,
            "produced_at": 1_700_000_000_000,
            **output,
        }
        for event, output in zip(events, outputs, strict=True)
    ]
    stages: dict[str, Callable[[], object]] = {
        "decode": lambda: decoder.decode_many(values),
        "task": lambda: task.run(events),  # type: ignore[arg-type]
        "encode": lambda: encoder.encode_many(rows),
    }
    return {name: _cpu_us(stage, rounds) / size for name, stage in stages.items()}


def _cpu_us(call: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        begun_ns = time.thread_time_ns()
        call()
        times.append((time.thread_time_ns() - begun_ns) / 1e3)
    return statistics.median(times)


# (b) The model in the loop against the model alone.


def _model(bench: Bench) -> Figures:
    from consumer.batcher import Batcher, runs_of
    from consumer.engine import choose_device
    from consumer.local.mails import spam_assassin
    from consumer.tasks.spam import SpamTask

    bench.say("reading e-mails")
    events = [event for event, _ in islice(spam_assassin(), 3_000)]
    task = SpamTask()
    task.load(choose_device())
    made = task.prepare(events, [None] * len(events))
    items = [item for item in made if isinstance(item, Item)]
    ordered = sorted(items, key=lambda item: item.tokens)

    def packed() -> Iterator[list[Any]]:
        batcher = Batcher(task.budget)
        for each in runs_of(0, 0, ordered, 0):
            batcher.add(each)
        while batch := batcher.take(0, idle=True):
            yield [ordered[i].value for r in batch.runs for i in range(r.start, r.stop)]

    def as_they_come() -> Iterator[list[Any]]:
        for begin in range(0, len(items), 32):
            yield [item.value for item in items[begin : begin + 32]]

    bench.say("the model alone, ideally packed batches")
    ideal = _model_rate(task, packed, bench.seconds)
    bench.say("the model alone, batches of 32 as they come")
    arrival = _model_rate(task, as_they_come, bench.seconds)
    bench.say("the model in the loop")
    count = max(2 * len(events), int(ideal * bench.seconds * 1.3))
    topic = make_topic(bench.servers, "bench-emails", _PARTITIONS)
    encoded = Encoder(load_schema("email")).encode_many(events)
    values = [value for value in encoded if isinstance(value, bytes)]
    fill(bench.servers, topic, ((b"%d" % n, value) for n, value in enumerate(islice(cycle(values), count))))
    ours = _measure(bench, topic, count, [_spam_worker])
    bench.say("the model alone again")
    ideal = statistics.mean((ideal, _model_rate(task, packed, bench.seconds)))
    return {
        "emails_per_s": ours.records_per_s,
        "model_alone_per_s": ideal,
        "ratio": ours.records_per_s / ideal,
        "arrival_order_32_per_s": arrival,
        "over_arrival_order": ideal / arrival,
        "loop_over_arrival_order": ours.records_per_s / arrival,
        "rss_mib": max(ours.rss_mib),
    }


def _model_rate(task: Any, batches: Callable[[], Iterator[list[Any]]], seconds: float) -> float:
    """Items a second through whole passes over `batches`, for at least `seconds`."""
    done, begun_s = 0, time.monotonic()
    while time.monotonic() - begun_s < seconds:
        for batch in batches():
            done += len(task.fetch(task.compute(task.stage(batch))))
    return done / (time.monotonic() - begun_s)


def _spam_worker(bench: Bench, group: str, topic: str, out: str, number: int) -> Child:
    return worker(["spam", *_flags(bench, group, topic, out)], bench.folder, f"{group}-{number}")


# (c) Latency at a light load.


def _latency(bench: Bench) -> Figures:
    topic, out = (make_topic(bench.servers, name, _PARTITIONS) for name in ("bench-clicks", "bench-out"))
    decode = Decoder(load_schema("click_score")).decode_many

    def event_id(value: bytes) -> str:
        (score,) = decode([value])
        return "" if isinstance(score, BadRecord) else str(score["event_id"])

    group = f"bench-{uuid.uuid4().hex[:8]}"
    with _click_worker(bench, group, topic, out, 0) as child:
        warm = _clicks(6 * _LATENCY_RATE_PER_S)  # the broker's JVM is not quick at first
        latencies_s(bench.servers, topic, out, warm, _LATENCY_RATE_PER_S, event_id)
        cpu_s, begun_s = child.cpu_s(), time.monotonic()
        rows = _clicks(int(bench.seconds * _LATENCY_RATE_PER_S))
        found = latencies_s(bench.servers, topic, out, rows, _LATENCY_RATE_PER_S, event_id)
        share = (child.cpu_s() - cpu_s) / (time.monotonic() - begun_s)
    return {
        "rate_per_s": float(_LATENCY_RATE_PER_S),
        "p50_ms": 1e3 * quantile(found, 0.5),
        "p90_ms": 1e3 * quantile(found, 0.9),
        "p99_ms": 1e3 * quantile(found, 0.99),
        "max_ms": 1e3 * max(found),
        "cpu_share": share,
    }


# (d) Two workers against one, (e) memory, (f) restart.


def _workers(bench: Bench) -> Figures:
    topic, count = _clicks_topic(bench, times=3)
    bench.say("one worker")
    one = _measure(bench, topic, count, [_click_worker])
    bench.say("two workers")
    two = _measure(bench, topic, count, [_click_worker, _click_worker])
    return {
        "one_per_s": one.records_per_s,
        "two_per_s": two.records_per_s,
        "ratio": two.records_per_s / one.records_per_s,
        "cpu_us_one": one.cpu_us,
        "cpu_us_two": two.cpu_us,
    }


def _memory(bench: Bench) -> Figures:
    topic, count = _clicks_topic(bench)
    bench.say(f"a backlog of {count:,}")
    found = _measure(bench, topic, count, [_click_worker]).rss_mib
    half = len(found) // 2
    return {
        "rss_mib_early": statistics.median(found[:half]),
        "rss_mib_late": statistics.median(found[half:]),
        "rss_mib_max": max(found),
    }


def _restart(bench: Bench) -> Figures:
    """From SIGKILL, with the restart at once under the same name, to the first new result."""
    topic, count = _clicks_topic(bench)
    out = make_topic(bench.servers, "bench-out", _PARTITIONS)
    group = f"bench-{uuid.uuid4().hex[:8]}"
    arguments = [_CLICK_TASK, *_flags(bench, group, topic, out), f"--instance-name={group}"]
    follower = Follower.of(bench.servers, topic, group)
    with worker(arguments, bench.folder, f"{group}-0") as child:
        done = _until(follower, [child], count // 20)
        child.kill()
    killed_s, before = time.monotonic(), follower.done()
    with worker(arguments, bench.folder, f"{group}-1") as child:
        _until(follower, [child], before + 1)
        back_s = time.monotonic() - killed_s
    return {"first_result_s": back_s, "records_before": float(done)}


_MEASURES: dict[str, Callable[[Bench], Figures]] = {
    "overhead": _overhead,
    "model": _model,
    "latency": _latency,
    "workers": _workers,
    "memory": _memory,
    "restart": _restart,
}


def _card(name: str, figures: Figures) -> Table:
    table = Table(
        title=name, title_justify="left", title_style="bold", box=None, show_header=False, min_width=50
    )
    table.add_column()
    table.add_column(justify="right", style="cyan")
    for key, value in figures.items():
        table.add_row(key.replace("_", " "), f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.3g}")
    return table
