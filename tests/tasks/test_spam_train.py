"""Training and its figures, on letters made up here."""

from __future__ import annotations

import json
import random
from pathlib import Path

import fastavro
import numpy as np
import pytest
import torch

from consumer.errors import Fatal
from consumer.models.spam import WEIGHTS, load_spam
from consumer.train import spam, spam_fit
from consumer.train.card import auc, calibration_error, cut, figures
from consumer.train.spam_data import read_mails

SCHEMA = {
    "type": "record",
    "name": "LabelledEmail",
    "fields": [
        {"name": "corpus", "type": "string"},
        {"name": "label", "type": "boolean"},
        {"name": "subject", "type": "string"},
        {"name": "body", "type": "string"},
    ],
}
WORDS = {
    True: "cheap pills offer winner money buy now free prize click order discount".split(),
    False: "meeting minutes patch lunch report schedule thanks review draft question team monday".split(),
}


def container(folder: Path, corpus: str, count: int = 60) -> None:
    chance = random.Random(corpus)
    rows = []
    for number in range(count):
        label = number % 2 == 0
        words = [chance.choice([*WORDS[label], "the", "and", "we", corpus]) for _ in range(30)]
        rows.append(
            {"corpus": corpus, "label": label, "subject": f"{words[0]} {number}", "body": " ".join(words)}
        )
    with (folder / f"{corpus}.avro").open("wb") as stream:
        fastavro.writer(stream, SCHEMA, rows)


def test_training_writes_weights_that_load_and_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(spam_fit, "SKIMMER_STEPS", 30)
    for corpus in ("spamassassin", "enron1", "enron2", "elsewhere"):
        container(tmp_path, corpus)
    spam.train(tmp_path, tmp_path / "out")
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert set(card["left_out"]) == {"spamassassin", "enron", "elsewhere"}
    assert all(row["auc"] > 0.95 for row in card["left_out"].values())
    assert card["version"] in (tmp_path / "out" / "MODEL_CARD.md").read_text()
    loaded = load_spam(tmp_path / "out")
    mails = read_mails(tmp_path)
    rows = np.arange(len(mails.ids))
    with torch.inference_mode():
        odds = loaded.model(spam_fit.padded(mails, rows, 512)).double().numpy()
    assert auc(odds, mails.spam) > 0.95
    assert mails.held.any() and set(mails.family[mails.held].tolist()) == {"spamassassin"}


@pytest.mark.parametrize("corpora", [(), ("enron1", "enron2", "elsewhere")])
def test_data_that_cannot_be_judged_is_refused(tmp_path: Path, corpora: tuple[str, ...]) -> None:
    for corpus in corpora:
        container(tmp_path, corpus, 4)
    with pytest.raises(Fatal, match=r"no \.avro files|2 families"):
        spam.train(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_evaluate_prints_the_card(capsys: pytest.CaptureFixture[str]) -> None:
    card = spam.evaluate()
    assert card == json.loads((WEIGHTS / "card.json").read_text())
    shown = capsys.readouterr().out
    assert "enron" in shown and "trec07p" in shown
    spam.evaluate(as_json=True)
    assert json.loads(capsys.readouterr().out) == card


def test_figures_by_hand() -> None:
    odds = np.array([-2.0, -1.0, 0.5, 1.0, 3.0])
    truth = np.array([False, True, False, True, True])
    assert auc(odds, truth) == pytest.approx(5 / 6)
    assert auc(np.zeros(5), truth) == pytest.approx(0.5)
    found = figures(odds, truth, 0.7)
    assert [found["fpr"], found["recall"], found["accuracy"]] == pytest.approx([0.0, 2 / 3, 0.8], abs=1e-3)
    good = np.arange(200.0)
    assert (good >= cut(good, np.zeros(200, dtype=bool), 0.01)).mean() <= 0.01
    certain = np.array([0.0, 1.0, 1.0, 0.0])
    assert calibration_error(certain, certain.astype(bool)) == 0.0
    assert calibration_error(certain, ~certain.astype(bool)) == 1.0
