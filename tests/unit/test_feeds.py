"""What the demo sends: every event fits its schema and its task, every result can be said in a line."""

from __future__ import annotations

from itertools import islice, pairwise
from typing import Any

import pytest

from consumer.codec import Encoder, load_schema
from consumer.errors import BadRecord, Fatal
from consumer.local import says
from consumer.local.feeds import FEEDS, PARTS, chosen
from consumer.local.ledger import Due
from consumer.tasks import SHIPPED, find_task


def encoded(schema: str, rows: list[dict[str, Any]]) -> list[bytes]:
    values = Encoder(load_schema(schema)).encode_many(rows)
    bad = [value for value in values if isinstance(value, BadRecord)]
    assert not bad, str(bad[0])
    return [value for value in values if isinstance(value, bytes)]


@pytest.mark.parametrize("topic", FEEDS)
def test_events_fit_have_keys_and_ids_of_their_own_and_are_the_same_each_time(topic: str) -> None:
    feed = FEEDS[topic]
    offers = list(islice(feed.offers(), 30))
    events = [offer.event for offer in offers]
    assert max(map(len, encoded(feed.schema, events))) < 1_000_000, "more than a topic takes"
    assert len({event["id"] for event in events}) == len(events)
    assert all(event[feed.key] for event in events)
    assert [offer.event["id"] for offer in islice(feed.offers(), 30)] == [event["id"] for event in events]
    encoded(feed.schema, list(feed.spoiled(events[0])))


def test_the_clicks_go_on_for_ever_in_the_order_of_time() -> None:
    clicks = [offer.event for offer in islice(FEEDS["clicks"].offers(), 120_000)]
    assert len({event["id"] for event in clicks}) == len(clicks)
    assert all(a["time"] <= b["time"] for a, b in pairwise(clicks))
    begin = clicks[:500]
    assert sum(PARTS["discount"].due(event) is Due.RESULT for event in begin) > 100


@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_what_its_task_says(name: str) -> None:
    part, task = PARTS[name], find_task(name)
    assert set(part.tables) == set(task.tables)
    if part.feed is not None:
        assert (FEEDS[part.feed].schema,) == task.events
        assert part.feed == f"{task.events[0]}s"
        assert part.due(dict(task.example)) is Due.RESULT
    for table, rows in part.tables.items():
        encoded(task.tables[table], list(rows()))


def test_all_shipped_tasks_take_part() -> None:
    assert set(PARTS) == set(SHIPPED)


def test_tasks_are_chosen_by_name() -> None:
    assert list(chosen([])) == list(chosen([""])) == list(PARTS)
    assert list(chosen([" image", "spam", ""])) == ["spam", "image"]
    with pytest.raises(Fatal, match=r"the demo has no task spma; it has spam, discount"):
        chosen(["spam", "spma"])


def test_a_task_that_reads_results_needs_one_that_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from consumer.local.feeds import Part

    monkeypatch.setitem(PARTS, "digest", Part(lambda result, what: None, reads=("spam", "image")))
    assert list(chosen(["digest", "image"])) == ["image", "digest"]
    with pytest.raises(Fatal, match="reads the results of spam, image"):
        chosen(["digest", "answer"])


OFFER = {
    "decision": "offer", "user": "7", "percent": 15, "amount": None, "currency": "USD", "until": 1_509_494_400_000,
    "probability": 0.312, "cost": 45, "reason": "worth_it",
    "why": [{"words": "buys rarely", "contribution": -1.0}, {"words": "often uses coupons", "contribution": 0.5}],
}  # fmt: skip
SEEN = [{"label": "cat", "score": 0.71, "first_ms": 1_000, "last_ms": 3_000}]
CAT = {"label": "cat", "score": 0.71}


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (says.spam({"label": "ham", "probability": 0.042}, "[ILUG]\thello"), "ham    4.2 %  [ILUG] hello"),
        (says.spam({"label": "spam", "probability": 1.0}, "\ufffd" * 9), None),
        (
            says.discount(OFFER, "YOGURT"),
            "15 % off yogurt for customer 7 until 01 Nov, 0.45 USD at most: 31 % likely to redeem, often uses coupons",
        ),
        (says.discount({**OFFER, "percent": None, "amount": 50, "why": []}, "YOGURT")[:12], "0.50 USD off"),
        (
            says.discount({"decision": "none", "user": "7", "reason": "cool_down"}, "YOGURT"),
            "none on yogurt for customer 7: the last offer is too recent",
        ),
        (
            says.recommend(
                {"user": "7", "buy_again": [{"name": "Milk, 1 l", "score": 0.9}], "something_new": []}, "EGGS"
            ),
            "customer 7 at eggs, again: Milk 90 %; new: ",
        ),
        (
            says.recommend(
                {"user": "7", "buy_again": [], "something_new": [{"name": "Milk", "score": 0.5}]}, "EGGS"
            ),
            "customer 7 at eggs, not known yet; popular: Milk 50 %",
        ),
        (
            says.image({"kind": "image", "width": 4, "height": 3, "objects": [CAT, CAT], "seen": SEEN}, ""),
            "2 x cat 71 % in a photo of 4 x 3",
        ),
        (
            says.image({"kind": "video", "duration_ms": 4_000, "seen": SEEN}, ""),
            "cat 1-3 s (71 %) in a video of 4 s",
        ),
        (
            says.answer(
                {"known": True, "answer": "Thirty\ndays.", "citations": [{"passage": "back"}]}, "How?"
            ),
            "How? - Thirty days. [back]",
        ),
        (says.answer({"known": False}, "How?"), "How? - not known"),
        (says.insight({"kind": "spam_share", "what": "More of it."}, ""), "spam share: More of it."),
    ],
)
def test_a_result_in_a_line(line: str | None, wanted: str | None) -> None:
    assert line == wanted


@pytest.mark.parametrize(
    ("subject", "shown"),
    [
        ("[ILUG] a\tsubject", "[ILUG] a subject"),
        ("Houses rise \ufffd1,100 a week", "Houses rise 1,100 a week"),
        ("你準備好了嗎?", "你準備好了嗎?"),
        ("", "(no subject)"),
        ("[\ufffd\ufffd\ufffd\ufffd] \ufffd\ufffd Best 5", None),
    ],
)
def test_subjects_are_cleaned_and_unreadable_ones_left_out(subject: str, shown: str | None) -> None:
    assert says.readable(subject) == shown
