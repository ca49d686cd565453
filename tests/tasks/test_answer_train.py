"""Thresholds and figures of the task `answer`, by hand and from the shipped card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from consumer.errors import Fatal
from consumer.models.answer import Draft, Thresholds, judge
from consumer.models.passages import Found
from consumer.tasks.answer import CARD
from consumer.train import answer
from consumer.train.answer import Asked, Measured, choose, figures, is_right

PASSAGES = {"cards": "A gift card is valid for four years.", "legs": "A zorbit has seven legs."}
LOOSE = Thresholds(relevance=0.3, support=0.5, quote=0.3)


def measured(
    text: str,
    gold: str | None,
    fact: str,
    draft: str,
    score: float,
    found: str = "cards",
    *,
    chooses: bool = True,
) -> Measured:
    near = Found(found, "", PASSAGES[found], score, (PASSAGES[found],))
    asked = Asked(text, gold, ((fact,),) if gold else (), chooses)
    return Measured(asked, Draft(text, (near,), draft, True, 10, 5), (found, "other"))


RIGHT = measured("How long is a card valid?", "cards", "four", "The card is valid for four years.", 0.7)
QUOTED = measured("Is a card valid for long?", "cards", "four", "Elephants dance.", 0.6)
WRONG = measured("How long is a card valid?", "cards", "nine", "The card is valid for four years.", 0.4)
ASTRAY = measured("How many legs has it?", "cards", "seven", "It has seven legs.", 0.5, "legs")
SILENT = measured("How many legs has it?", "legs", "seven", "It has seven legs.", 0.2, "legs")
INVENTED = measured("How long is a fish valid?", None, "", "A fish is valid for four years.", 0.45)
DECLINED = measured("How long is a fish?", None, "", "Very long.", 0.1)


def test_right_means_known_cited_and_factual() -> None:
    verdicts = [
        is_right(each.asked, judge(each.draft, LOOSE)) for each in (RIGHT, QUOTED, WRONG, ASTRAY, SILENT)
    ]
    assert verdicts == [True, True, False, False, False]
    assert [is_right(each.asked, judge(each.draft, LOOSE)) for each in (INVENTED, DECLINED)] == [False, True]


def test_figures_by_hand() -> None:
    found = figures([RIGHT, QUOTED, WRONG, ASTRAY, SILENT, INVENTED, DECLINED], LOOSE)
    assert found == pytest.approx(
        {
            "answerable": 5,
            "right": 2 / 5,
            "right_in_own_words": 1 / 5,
            "wrong": 2 / 5,
            "declined": 1 / 5,
            "unanswerable": 2,
            "unanswerable_declined": 1 / 2,
            "recall_at_1": 4 / 5,
            "recall_at_3": 4 / 5,
            "recall_at_5": 4 / 5,
        }
    )


def test_the_thresholds_chosen_keep_what_is_right_and_drop_what_is_not() -> None:
    chosen = choose([RIGHT, QUOTED, WRONG, ASTRAY, SILENT, INVENTED, DECLINED])
    found = figures([RIGHT, QUOTED, WRONG, ASTRAY, SILENT, INVENTED, DECLINED], chosen)
    assert (found["right"], found["wrong"], found["unanswerable_declined"]) == (2 / 5, 0.0, 1.0)


def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, rows: list[Measured]) -> Any:
    monkeypatch.setattr(answer, "measure", lambda data: rows)
    answer.evaluate(as_json=True)
    return json.loads(capsys.readouterr().out)


def test_evaluate_measures_the_shipped_thresholds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unseen = measured("Is a card valid?", "cards", "four", "?", 0.9, chooses=False)
    card = shown(capsys, monkeypatch, [RIGHT, unseen, DECLINED])
    assert (card["held_out"]["answerable"], card["held_out"]["right"]) == (1, 1.0)
    assert (card["chosen_on"]["answerable"], card["chosen_on"]["unanswerable_declined"]) == (1, 1.0)
    assert card["thresholds"] == json.loads(CARD.read_text())["thresholds"]


def test_training_writes_a_card_that_says_what_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        RIGHT,
        QUOTED,
        DECLINED,
        *(measured("x", "cards", "four", "?", 0.1, chooses=False) for _ in range(3)),
    ]
    monkeypatch.setattr(answer, "measure", lambda data: rows)
    answer.train(out=tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["chosen_on"]["right"] == 1.0 and card["held_out"]["declined"] == 1.0
    assert card["version"] in (tmp_path / "MODEL_CARD.md").read_text()
    assert "held out" in capsys.readouterr().out


def test_the_shipped_card_holds_its_promises() -> None:
    card = json.loads(CARD.read_text())
    held = card["held_out"]
    assert held["answerable"] >= 30 and held["unanswerable"] >= 15
    assert held["recall_at_3"] >= 0.9
    assert held["right"] >= 0.6 and held["unanswerable_declined"] >= 0.7
    assert card["version"] in (CARD.parent / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize("text", ["[", "[{}]", '{"a": 1}'])
def test_data_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "passages.json").write_text(text)
    with pytest.raises(Fatal, match=r"passages\.json \(id, title, text\)"):
        answer.read(tmp_path)
