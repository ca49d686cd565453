"""Memory does not grow with lag."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, TopicPartition

from tests.broker.rig import SCORING, Rig, click

BACKLOG = 200_000
MIB = 1 << 20
SLACK_MIB = 8
"""Between the two halves of the drain: what the allocator keeps, and one more compiled path here and there."""
LIMIT_MIB = 150


@pytest.mark.timeout(180)
def test_proof_7_memory_stays_flat_with_a_backlog(
    bootstrap_servers: str,
    unique_name: Callable[[str], str],
    tmp_path: Path,
    record_property: Callable[..., None],
) -> None:
    rig = Rig(bootstrap_servers, unique_name("memory"), tmp_path, partitions=6)
    try:
        rig.create()
        rig.send(click(f"id-{n}", user=f"user-{n % 1000}") for n in range(BACKLOG))
        worker = rig.worker(SCORING)
        process = psutil.Process(worker.process.pid)
        samples: list[tuple[int, float]] = []  # (records done, RSS in MiB)
        places = [TopicPartition(rig.out, p) for p in range(rig.partitions)]
        looker = Consumer({"bootstrap.servers": rig.servers, "group.id": "nobody"})
        try:
            while (
                not samples or samples[-1][0] < BACKLOG
            ):  # ends of the output topic: results and some commit marks
                assert worker.process.poll() is None, worker.said()[-3000:]
                done = sum(looker.get_watermark_offsets(place, timeout=20)[1] for place in places)
                samples.append((done, process.memory_info().rss / MIB))
        finally:
            looker.close()
        assert worker.stop() == 0
    finally:
        rig.close()
    earlier = [rss for done, rss in samples if BACKLOG * 0.2 <= done < BACKLOG * 0.6]
    later = [rss for done, rss in samples if done >= BACKLOG * 0.6]
    peak = max(rss for _, rss in samples)
    assert len(earlier) >= 3 and len(later) >= 3, f"too few samples: {samples}"
    print(
        f"RSS: {statistics.median(earlier):.1f} MiB earlier, {statistics.median(later):.1f} MiB later, "
        f"{peak:.1f} MiB at most, {len(samples)} samples"
    )
    record_property("peak_rss_mib", round(peak, 1))
    assert max(later) <= max(earlier) + SLACK_MIB
    assert peak < LIMIT_MIB
