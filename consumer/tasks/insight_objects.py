"""Kind `new_object`: an object that a user's uploads have never shown.

Row of a user: {"seen": last window, "uploads": n, "labels": {label: uploads that show it}}.

How surprising that is, the user's own past says (Good and Turing): about as many of the next uploads will show
something new as show, so far, something that no other upload does.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from consumer.records import Event
from consumer.task import State
from consumer.tasks.insight_terms import Finding, Thresholds, fits, place
from consumer.windows import Windows

__all__ = ["chance_of_new", "look_at_upload"]

PARTS = 256
ROWS = 8
"""Users in one part; of 2,048 in a partition those seen last are remembered."""
LABELS = 100
"""Labels of a user; of one with more nothing is called new any more."""
LABEL_BYTES = 60
"""Longer labels are not remembered, nor called new: a part stays below `state_max_bytes` whatever comes."""


def look_at_upload(
    state: State, event: Event, window: int, time: int, windows: Windows, enough: Thresholds
) -> list[Finding]:
    """One upload: what is new in it, then it joins the user's past."""
    user: str = event["user"]
    if not fits(user):
        return []
    rows = state.part(f"users/{zlib.crc32(user.encode()) % PARTS}")
    row = place(rows, user, ROWS, {"seen": window, "uploads": 0, "labels": {}})
    row["seen"] = max(row["seen"], window)
    labels: dict[str, int] = row["labels"]
    chance = chance_of_new(row["uploads"], labels)
    usual = (
        row["uploads"] >= enough.object_uploads and chance <= enough.object_chance and len(labels) < LABELS
    )
    found = [
        Finding(
            "new_object",
            f"{user}/{seen['label']}",
            f"{seen['label']} in an upload of user {user}, for the first time in {row['uploads'] + 1} uploads",
            seen["score"],
            seen["most"],
            0.0,
            row["uploads"] + 1,
            1 - chance,
            time,
            windows.begin(window),
            windows.begin(window + 1),
            [event["event_id"]] if fits(event["event_id"]) else [],
        )
        for seen in event["seen"]
        if usual
        and seen["score"] >= enough.object_score
        and seen["label"] not in labels
        and short(seen["label"])
    ]
    for label in {seen["label"] for seen in event["seen"]}:
        if label in labels or (len(labels) < LABELS and short(label)):
            labels[label] = labels.get(label, 0) + 1
    row["uploads"] += 1
    return found


def short(label: str) -> bool:
    return len(label) <= LABEL_BYTES and len(label.encode("utf-8", "replace")) <= LABEL_BYTES


def chance_of_new(uploads: int, labels: Mapping[str, int]) -> float:
    """That the next upload shows something new; one more is counted, so that it is never 0."""
    return (sum(count == 1 for count in labels.values()) + 1) / (uploads + 1)
