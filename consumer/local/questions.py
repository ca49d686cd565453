"""Questions and passages for the demo: the help pages of a shop that does not exist, our own text."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from consumer.records import Event

__all__ = ["passages", "questions"]

_FOLDER = Path(__file__).parents[1] / "train" / "answer_data"
_USERS = 40
_BEGIN_MS = 1_772_366_400_000
"""Time of the first question: 2026-03-01 12:00 UTC."""


def passages() -> Iterator[Event]:
    """Events of the schema `passage`, for the table `knowledge`; the key of each is its `id`."""
    for row in json.loads((_FOLDER / "passages.json").read_text(encoding="utf-8")):
        source = f"https://hollinwren.example/help/{row['id']}"
        yield {"id": row["id"], "title": row["title"], "text": row["text"], "source": source}


def questions(*, seed: int = 0) -> Iterator[tuple[Event, bool]]:
    """(event of the schema `question`, whether a passage answers it): all 96 in another order, round after round.

    Never ends; the same seed gives the same questions. The key of each is its `user`.
    """
    chance = random.Random(seed)
    rows = json.loads((_FOLDER / "questions.json").read_text(encoding="utf-8"))
    number, time = 0, _BEGIN_MS
    while True:
        chance.shuffle(rows)
        for row in rows:
            time += chance.randint(200, 4_000)
            event = {
                "id": f"q-{seed}-{number:07d}",
                "user": f"u-{chance.randrange(_USERS):08d}",
                "text": row["text"],
                "language": "en",
                "time": time,
            }
            yield event, row["passage"] is not None
            number += 1
