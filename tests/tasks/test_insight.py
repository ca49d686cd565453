"""Task `insight`: what it tells and what not, through the state that a worker keeps."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.codec import Decoder, Encoder, load_older, load_schema
from consumer.errors import BadRecord, Fatal
from consumer.records import Event
from consumer.state import Store
from consumer.task import Device, Item, State
from consumer.tasks import insight_campaigns, insight_domains, insight_objects
from consumer.tasks.insight import WEIGHTS, InsightTask, score_of
from consumer.tasks.insight_chance import (
    beta_binomial_above,
    binomial_above,
    binomial_off,
    chi_square_above,
    stability,
)
from consumer.tasks.insight_objects import chance_of_new
from consumer.tasks.insight_partition import EDGES
from consumer.windows import LOST, Windows, add, admit, closed

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
T0 = 1_772_323_200_000
MAX_STATE_BYTES = 65_536
CARD = json.loads((WEIGHTS / "card.json").read_text())
PROVENANCE = {"source_topic": "emails", "source_partition": 0, "source_offset": 1, "produced_at": T0}


@dataclass(slots=True)
class Rec:
    """A record as the store sees one."""

    at_ms: int
    name: str = "spam_verdicts"
    number: int = 0

    def topic(self) -> str:
        return self.name

    def partition(self) -> int:
        return self.number

    def key(self) -> None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return 1, self.at_ms


@dataclass(slots=True)
class Stream:
    """One partition on its way through the task."""

    topic: str = "spam_verdicts"
    options: dict[str, Any] = field(default_factory=dict)
    store: Store = field(default_factory=Store)
    task: InsightTask = field(init=False)

    def __post_init__(self) -> None:
        self.task = InsightTask(**self.options)
        self.task.load(Device())
        self.store.open((self.topic, 0), 1)

    def send(self, *events: Event) -> list[Event]:
        told = []
        for event in events:
            (item,) = self.task.prepare([event], [None])
            assert isinstance(item, Item), item
            record: Any = Rec(event.get("time") or event["produced_at"], self.topic)
            insight = self.store.use("finish", record, partial(self.task.finish, event, None))
            if insight is not None:
                told.append(insight)
        return told

    def contents(self) -> dict[bytes, bytes]:
        return self.store.contents((self.topic, 0))

    def clock(self) -> dict[str, int]:
        found: dict[str, int] = json.loads(self.contents()[b"f"])["clock"]
        return found


def result(time: int, name: str, model: str, **more: Any) -> Event:
    about = {"event_id": name, "time": time, "model": model, "model_version": "1", **PROVENANCE}
    return {**about, **more}


def mail(time: int, *, spam: bool = False, domain: str | None = "a.example", **more: Any) -> Event:
    dice = random.Random(f"{time} {domain} {spam}")
    own = {
        "label": "spam" if spam else "ham",
        "probability": 0.97 if spam else 0.02,
        "threshold": 0.9,
        "sender_domain": domain,
        "sketch": dice.getrandbits(64) - (1 << 63),
    }
    return result(time, f"m-{time}", "spam", **own | more)


def upload(time: int, *labels: str, user: str = "ann", score: float = 0.8) -> Event:
    seen = [{"label": label, "score": score, "most": 1} for label in labels]
    return result(time, f"u-{time}", "image", user=user, seen=seen)


def decision(time: int, *settled: tuple[int, float, int], probability: float | None = None) -> Event:
    rows = [dict(zip(("offers", "expected", "redeemed"), row, strict=True)) for row in settled]
    return result(time, f"d-{time}", "discount", probability=probability, decision="none", settled=rows)


def times(begin: int, count: int, step: int) -> Iterable[int]:
    return range(begin, begin + count * step, step)


def kinds(told: list[Event]) -> list[str]:
    return [insight["kind"] for insight in told]


# Spam share of a domain.


def turning(share_before: int, share_after: int) -> list[Event]:
    """A day of one mail a quarter of an hour, then six hours of one a minute; shares in per cent."""
    before = [mail(t, spam=n * 37 % 100 < share_before) for n, t in enumerate(times(T0, 96, HOUR_MS // 4))]
    after = [
        mail(t, spam=n * 37 % 100 < share_after) for n, t in enumerate(times(T0 + DAY_MS, 360, HOUR_MS // 60))
    ]
    return [*before, *after, mail(T0 + DAY_MS + 8 * HOUR_MS)]


def test_a_domain_that_turns_is_told_once() -> None:
    (told,) = [each for each in Stream().send(*turning(0, 90)) if each["kind"] == "spam_share"]
    assert (told["subject"], told["usual"], told["count"]) == ("a.example", 0.0, 60)
    assert told["observed"] == told["size"] == pytest.approx(0.9, abs=0.05)
    assert told["window_start"] == T0 + DAY_MS and told["window_end"] == T0 + DAY_MS + HOUR_MS
    assert told["since"] == T0 + DAY_MS
    assert told["sure"] > 0.999999
    assert told["examples"] == [f"m-{t}" for t in times(T0 + DAY_MS, 3, 60_000)]
    assert f"{told['observed']:.0%} of 60 mails from a.example" in told["what"]
    assert told["id"] == f"spam_verdicts/0/spam_share/a.example/{T0 + DAY_MS}"


@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 20), (60, 75), (90, 0)])
def test_a_small_rise_or_a_fall_is_not_told(before: int, after: int) -> None:
    assert "spam_share" not in kinds(Stream().send(*turning(before, after)))


def test_a_domain_without_past_has_no_jump() -> None:
    events = [mail(t, spam=True) for t in times(T0, 60, 60_000)]
    assert "spam_share" not in kinds(Stream().send(*events, mail(T0 + 3 * HOUR_MS)))


def test_a_second_episode_is_told_again() -> None:
    calm = [mail(t) for t in times(T0 + DAY_MS + 9 * HOUR_MS, 400, HOUR_MS // 4)]
    again = [mail(t, spam=True) for t in times(calm[-1]["time"] + HOUR_MS, 60, 60_000)]
    told = Stream().send(*turning(0, 90), *calm, *again, mail(again[-1]["time"] + 3 * HOUR_MS))
    told = [each for each in told if each["kind"] == "spam_share"]
    assert len(told) == 2
    assert len({each["id"] for each in told}) == 2


# Campaigns.


def copies(begin: int, count: int, base: int = 0x123456789ABCDEF, **more: Any) -> list[Event]:
    """Mails whose sketches differ from `base` in two bits that do not decide where a group lies."""
    dice = random.Random(begin)
    flips = [(1 << dice.randrange(50)) | (1 << dice.randrange(50)) for _ in range(count)]
    return [mail(begin + n * 1_000, sketch=base ^ flip, **more) for n, flip in enumerate(flips)]


def test_nearly_equal_mails_are_a_campaign_told_once() -> None:
    told = Stream().send(*copies(T0, 40, spam=True))
    assert kinds(told) == ["campaign"]
    (only,) = told
    assert (only["size"], only["count"], only["since"]) == (10, 10, T0)
    assert only["examples"] == [f"m-{T0 + n * 1_000}" for n in range(3)]
    assert "10 nearly equal mails" in only["what"] and "100% of them are called spam" in only["what"]


def test_mails_that_have_nothing_in_common_are_none() -> None:
    assert Stream().send(*(mail(t) for t in times(T0, 400, 10_000))) == []


def test_nearly_equal_mails_over_a_long_time_are_none() -> None:
    events = [{**copy, "time": T0 + n * HOUR_MS} for n, copy in enumerate(copies(T0, 40))]
    assert "campaign" not in kinds(Stream().send(*events))


def test_a_campaign_survives_many_other_mails() -> None:
    """Single mails are forgotten before a group."""
    others = [mail(t, domain=f"d{t % 999}.example") for t in times(T0 + 1, 3_000, 1_000)]
    events = sorted(
        [*others, *[{**c, "time": T0 + n * 60_000} for n, c in enumerate(copies(T0, 40))]], key=by_time
    )
    assert kinds(Stream().send(*events)).count("campaign") == 1


def by_time(event: Event) -> int:
    return int(event["time"])


# Objects.


def test_an_object_that_a_user_never_showed() -> None:
    stream = Stream("detections")
    assert stream.send(*(upload(t, "cat", "person") for t in times(T0, 30, HOUR_MS))) == []
    (told,) = stream.send(upload(T0 + 30 * HOUR_MS, "person", "boat"))
    assert (told["kind"], told["subject"], told["size"]) == ("new_object", "ann/boat", 0.8)
    assert told["examples"] == [f"u-{T0 + 30 * HOUR_MS}"]
    assert told["sure"] == pytest.approx(1 - 1 / 31)
    assert stream.send(upload(T0 + 31 * HOUR_MS, "boat")) == []


def test_what_is_new_is_nothing_for_who_shows_something_new_each_time() -> None:
    stream = Stream("detections")
    assert stream.send(*(upload(t, f"thing-{t}") for t in times(T0, 60, HOUR_MS))) == []
    assert chance_of_new(60, {str(n): 1 for n in range(60)}) == 1.0


def test_an_unsure_object_and_a_new_user_are_not_told() -> None:
    stream = Stream("detections")
    stream.send(*(upload(t, "cat") for t in times(T0, 30, HOUR_MS)))
    assert stream.send(upload(T0 + 31 * HOUR_MS, "boat", score=0.4)) == []
    assert stream.send(upload(T0 + 32 * HOUR_MS, "boat", user="bob")) == []


def test_two_new_objects_come_out_with_two_events() -> None:
    stream = Stream("detections")
    stream.send(*(upload(t, "cat") for t in times(T0, 50, HOUR_MS)))
    first = stream.send(upload(T0 + 51 * HOUR_MS, "boat", "kite"))
    second = stream.send(upload(T0 + 52 * HOUR_MS, "cat"))
    assert [each["subject"] for each in [*first, *second]] == ["ann/boat", "ann/kite"]


# Redemptions.


def test_redemptions_that_leave_their_prediction() -> None:
    stream = Stream("discount_decisions")
    assert stream.send(*(decision(t, (10, 2.0, 2)) for t in times(T0, 40, HOUR_MS))) == []
    told = stream.send(*(decision(t, (10, 2.0, 5)) for t in times(T0 + 2 * DAY_MS, 40, HOUR_MS)))
    (only,) = told
    assert (only["kind"], only["subject"], only["count"]) == ("redemption_drift", "discount", 100)
    assert only["size"] == pytest.approx(2.5)
    assert (only["observed"], only["usual"]) == (0.5, 0.2)


def test_a_small_drift_and_broken_sums_are_not_told() -> None:
    stream = Stream("discount_decisions")
    assert (
        stream.send(
            *(decision(t, (10, 2.0, 2), (100, float("nan"), 9), (5, 1.0, 7)) for t in times(T0, 40, 1))
        )
        == []
    )
    assert all(b"null" not in value for value in stream.contents().values())


# Scores.


def scored(begin: int, hours: int, high: float, model: str = "2") -> list[Event]:
    """Two hundred decisions an hour, of which a share of `high` has a high probability."""
    return [
        {**decision(t, probability=0.9 if n % 200 < 200 * high else 0.15), "model_version": model}
        for n, t in enumerate(times(begin, hours * 200, HOUR_MS // 200))
    ]


def test_scores_that_move_away_from_the_models_first_ones() -> None:
    stream = Stream("discount_decisions")
    assert stream.send(*scored(T0, 30, 0.1)) == []
    told = stream.send(*scored(T0 + 30 * HOUR_MS, 10, 0.5))
    (only,) = [each for each in told if each["kind"] == "score_shift"]
    assert only["subject"] == "discount 2"
    assert only["size"] > 0.25 and only["sure"] > 0.999
    assert only["window_start"] >= T0 + 27 * HOUR_MS
    assert "0.9 to 0.97" in only["what"]


def test_another_version_has_a_reference_of_its_own() -> None:
    stream = Stream("discount_decisions")
    assert stream.send(*scored(T0, 30, 0.1), *scored(T0 + 30 * HOUR_MS, 30, 0.5, model="3")) == []


def test_the_shipped_reference_is_used_for_the_shipped_model() -> None:
    (name, counts), *_ = CARD["references"].items()
    model, version = name.split()
    stream = Stream()
    dice = np.random.default_rng(0)
    middle = [(a + b) / 2 for a, b in pairwise((0.0, *EDGES, 1.0))]
    drawn = dice.choice(middle, 4_000, p=np.array(counts) / sum(counts)).tolist()
    calm = [
        {**mail(t), "probability": p, "model": model, "model_version": version}
        for t, p in zip(times(T0, 4_000, 20_000), drawn, strict=True)
    ]
    assert "score_shift" not in kinds(stream.send(*calm))
    moved = [{**event, "time": event["time"] + DAY_MS, "probability": 0.5} for event in calm[:2_000]]
    assert "score_shift" in kinds(stream.send(*moved))


# Volume.


def hourly(counts: Iterable[int], begin: int = T0) -> list[Event]:
    """So many answers in each hour."""
    return [
        result(
            begin + hour * HOUR_MS + n * HOUR_MS // max(1, count), f"a-{hour}-{n}", "answer", relevance=0.7
        )
        for hour, count in enumerate(counts)
        for n in range(count)
    ]


def test_a_volume_out_of_its_band_is_told_once() -> None:
    told = Stream("answers").send(*hourly([100, 90, 110] * 10 + [400, 380, 390] + [100, 100]))
    (only,) = told
    assert (only["kind"], only["subject"], only["observed"], only["usual"]) == ("volume", "answers", 400, 100)
    assert only["window_start"] == T0 + 30 * HOUR_MS


def test_silence_is_told_by_the_first_result_after_it() -> None:
    (only,) = Stream("answers").send(*hourly([100, 90, 110] * 10 + [0, 0, 0] + [100]))
    assert (only["observed"], only["window_start"]) == (0, T0 + 30 * HOUR_MS)


def test_night_and_day_are_usual() -> None:
    day = [5] * 8 + [100] * 10 + [40] * 6
    assert Stream("answers").send(*hourly(day * 6)) == []


# Event time.


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_order_within_the_lateness_does_not_matter(data: st.DataObject) -> None:
    events = turning(0, 90)
    delays = data.draw(st.lists(st.integers(0, 300_000), min_size=len(events), max_size=len(events)))
    shuffled = [
        e
        for _, _, e in sorted(
            (e["time"] + d, n, e) for n, (e, d) in enumerate(zip(events, delays, strict=True))
        )
    ]
    end = mail(events[-1]["time"] + 2 * HOUR_MS)
    straight, mixed = Stream(), Stream()
    told, again = straight.send(*events, end), mixed.send(*shuffled, end)
    assert [each for each in told if each["kind"] != "campaign"] == [
        e for e in again if e["kind"] != "campaign"
    ]
    assert mixed.clock() == straight.clock()
    assert mixed.clock()["late"] == 0
    books = [each.contents() for each in (straight, mixed)]
    assert all(books[0][key] == books[1][key] for key in books[0] if not key.startswith(b"f/campaigns"))


def test_what_is_too_late_is_counted_and_not_applied() -> None:
    stream = Stream("answers")
    told = stream.send(*hourly([100] * 30), *hourly([900], T0 + 20 * HOUR_MS))
    assert told == []
    assert stream.clock()["late"] == 900
    (told_later,) = stream.send(*hourly([400, 1, 1], T0 + 30 * HOUR_MS))
    assert told_later["late"] == 900


def test_a_date_far_ahead_does_not_make_the_rest_late() -> None:
    stream = Stream("answers")
    stream.send(*hourly([100] * 10))
    stream.send(result(T0 + 4_000 * DAY_MS, "far", "answer", relevance=0.5))
    told = stream.send(*hourly([100] * 60, T0 + 10 * HOUR_MS))
    assert (stream.clock()["ahead"], stream.clock()["late"]) == (1, 0)
    assert told == []


def test_a_long_silence_costs_two_events() -> None:
    stream = Stream("answers")
    stream.send(*hourly([100] * 10))
    stream.send(*hourly([100], T0 + 9 * DAY_MS))
    assert (stream.clock()["ahead"], stream.clock()["late"]) == (2, 0)
    assert stream.clock()["now"] > T0 + 9 * DAY_MS


def test_a_clock_that_began_wrongly_is_set_right() -> None:
    stream = Stream("answers")
    stream.send(result(T0 + 4_000 * DAY_MS, "far", "answer", relevance=0.5))
    stream.send(*hourly([100] * 10))
    assert stream.clock()["late"] == LOST - 1
    assert stream.clock()["now"] < T0 + DAY_MS


@given(
    st.lists(st.integers(0, 10**6), min_size=1, max_size=60),
    st.integers(1, 500),
    st.integers(0, 500),
)
def test_every_event_is_in_one_window_or_counted_as_left_out(
    moments: list[int], window: int, lateness: int
) -> None:
    windows, total = Windows(window, min(lateness, window)), 0
    clock: dict[str, Any] = {}
    sums: dict[str, Any] = {}
    for moment in moments:
        if admit(clock, moment, windows):
            add(sums, windows.number(moment), (1,))
        total += sum(count for _, (count,) in closed(sums, clock["first"]))
        assert all(int(number) >= clock["first"] for number in sums)
    total += sum(count for (count,) in sums.values())
    assert total + clock["late"] + clock["ahead"] == len(moments)


# Bounds.


def test_state_is_bounded_whatever_comes() -> None:
    stream = Stream()
    dice = random.Random(2)
    label = "é" * 45
    for n in range(12_000):
        time = T0 + n * 1_000
        domain = f"{n}.{label}"
        stream.send(
            mail(time, spam=True, domain=domain, sketch=dice.getrandbits(64) - 2**63, event_id=f"{n}{label}")
        )
        stream.send({**mail(time, sketch=None), "model_version": f"v{n}" if n % 100 == 0 else "1"})
    largest = max(map(len, stream.contents().values()))
    assert largest < MAX_STATE_BYTES / 4
    parts = insight_domains.PARTS + (1 << insight_campaigns.PLACE_BITS) + 4 + 1
    assert len(stream.store) <= parts


def test_uploads_are_bounded_whatever_comes() -> None:
    stream = Stream("detections")
    for n in range(insight_objects.ROWS * 4):
        user = next(f"{n}-{k}-{'u' * 80}" for k in range(10_000) if part_of(f"{n}-{k}-{'u' * 80}") == 0)
        labels = [f"{number:03}-{'l' * 56}" for number in range(150)]
        stream.send(upload(T0 + n * 1_000, *labels, user=user))
    assert max(map(len, stream.contents().values())) < MAX_STATE_BYTES
    assert len(stream.store) == 3


def part_of(user: str) -> int:
    import zlib

    return zlib.crc32(user.encode()) % insight_objects.PARTS


def test_many_findings_at_once_wait_and_do_not_pile_up() -> None:
    domains = [f"d{n}.example" for n in range(60)]
    before = [mail(T0 + n * HOUR_MS + k, domain=d) for n in range(24) for k, d in enumerate(domains)]
    after = [
        mail(T0 + DAY_MS + n * 60_000 + k, domain=d, spam=True)
        for n in range(30)
        for k, d in enumerate(domains)
    ]
    stream = Stream()
    stream.send(*before, *after)
    told = stream.send(*(mail(T0 + DAY_MS + 2 * HOUR_MS + k, domain=None, sketch=None) for k in range(100)))
    told = [each for each in told if each["kind"] == "spam_share"]
    assert 30 <= len(told) <= 34
    assert len({each["id"] for each in told}) == len(told)


# The contract.


def test_the_insight_fits_its_schema() -> None:
    (told,) = [each for each in Stream().send(*turning(0, 90)) if each["kind"] == "spam_share"]
    row = {**told, **PROVENANCE, "event_id": "m", "model": "insight", "model_version": "1"}
    schema = load_schema("insight")
    (back,) = Decoder(schema).decode_many(Encoder(schema).encode_many([row]))  # type: ignore[arg-type]
    assert back == row


def test_verdicts_of_the_first_version_are_counted_all_the_same() -> None:
    """Without domain and sketch; by when they were made."""
    (old,) = load_older("spam_verdict")
    row = {**PROVENANCE, "event_id": "m", "label": "ham", "probability": 0.25, "threshold": 0.5}
    row |= {"model": "spam", "model_version": "1"}
    values = Encoder(old).encode_many([{**row, "produced_at": T0 + n * 1_000} for n in range(40)])
    events = Decoder(load_schema("spam_verdict"), [old]).decode_many(values)  # type: ignore[arg-type]
    stream = Stream()
    assert stream.send(*events) == []  # type: ignore[arg-type]
    assert stream.clock()["now"] == T0 + 39_000


def test_results_of_every_task_are_read() -> None:
    product = {"score": 0.4}
    assert score_of(mail(T0)) == 0.02
    assert score_of(upload(T0, "cat")) == 0.8
    assert score_of(upload(T0)) == 0.0
    assert score_of(decision(T0)) is None
    assert score_of(result(T0, "r", "recommend", buy_again=[], something_new=[product])) == 0.4
    assert score_of(result(T0, "a", "answer", relevance=-1.0)) == -1.0


def test_the_clock_may_be_that_of_the_results() -> None:
    stream = Stream(options={"clock": "result", "window_s": "10"})
    stream.send({**mail(T0), "time": 0, "produced_at": T0 + 5})
    assert stream.clock()["now"] == T0 + 5


@pytest.mark.parametrize("time", [-1, 253_402_300_800_000])
def test_a_time_that_is_none_is_rejected(time: int) -> None:
    (made,) = Stream().task.prepare([mail(time)], [None])
    assert isinstance(made, BadRecord) and made.reason == "bad_time"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"window_s": "0"}, "window_s"),
        ({"window_s": 10, "lateness_s": 11}, "lateness_s"),
        ({"clock": "wall"}, "clock"),
        ({"volume_factor": "much"}, "volume_factor"),
        ({"volum_factor": 2}, "volum_factor"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], word: str) -> None:
    with pytest.raises(Fatal, match=word):
        InsightTask(**options)


def test_a_folder_without_card_is_named(tmp_path: Any) -> None:
    with pytest.raises(Fatal, match=r"card\.json"):
        InsightTask(weights=tmp_path).load(Device())


def test_an_event_that_fails_leaves_the_books_as_they_were() -> None:
    stream = Stream()
    stream.send(mail(T0))
    before = stream.contents()
    broken = mail(T0 + 1)
    del broken["label"]
    with pytest.raises(KeyError):
        stream.send(broken)
    assert stream.contents() == before


def test_thresholds_can_be_set() -> None:
    stream = Stream(options={"campaign_mails": "4"})
    assert kinds(stream.send(*copies(T0, 5))) == ["campaign"]


# The chances, against sampling.


@pytest.mark.parametrize(
    ("stated", "draw"),
    [
        (binomial_above(14, 40, 0.25), lambda d, n: d.binomial(40, 0.25, n) >= 14),
        (binomial_off(14, 40, 10.0), lambda d, n: abs(d.binomial(40, 0.25, n) - 10) >= 4),
        (
            beta_binomial_above(14, 40, 5, 30),
            lambda d, n: d.binomial(40, d.beta(5.5, 25.5, n)) >= 14,
        ),
        (chi_square_above(15.0, 10), lambda d, n: d.chisquare(10, n) >= 15.0),
    ],
    ids=["binomial", "two-sided", "beta-binomial", "chi-square"],
)
def test_chances_are_as_stated(stated: float, draw: Callable[[np.random.Generator, int], Any]) -> None:
    share = float(draw(np.random.default_rng(0), 200_000).mean())
    assert stated == pytest.approx(share, abs=0.02 if share > 0.1 else 0.005)


def test_the_stability_index_is_fair_by_chance() -> None:
    dice, p = np.random.default_rng(0), np.full(11, 1 / 11)
    found = [
        stability(dice.multinomial(2_000, p).tolist(), dice.multinomial(500, p).tolist())
        for _ in range(2_000)
    ]
    indices, chances = np.array(found).T
    assert abs(indices.mean()) < 0.002
    assert float((chances < 0.05).mean()) == pytest.approx(0.05, abs=0.015)


def test_chances_at_the_edges() -> None:
    assert binomial_above(0, 10, 0.5) == 1.0
    assert binomial_above(11, 10, 0.5) == 0.0
    assert binomial_above(5, 10, 0.0) == 0.0
    assert beta_binomial_above(0, 10, 0, 20) == pytest.approx(1.0)
    assert beta_binomial_above(10, 10, 0, 1_000_000) < 1e-30
    assert State().part("x") == {}
