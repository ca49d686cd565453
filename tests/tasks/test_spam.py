"""Task `spam`: the shipped weights, through the same calls the engine makes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from consumer.errors import Fatal
from consumer.models.minilm import CLS, PAD, SEP
from consumer.models.spam import ENCODER_IDS, HASH_BITS, WEIGHTS, buckets
from consumer.records import Event
from consumer.task import Device, Item, State
from consumer.tasks.spam import SpamTask, sender_domain

TOLERANCE = 0.02
"""Largest difference of a probability between bf16 and fp32."""

LETTERS = [
    ("Lunch?", "Shall we say noon at the usual place? Bring the slides for Friday if they are ready. Ann"),
    ("", ""),
    ("Re: build fails", "> it fails on line 12\nThat was my patch, sorry. Fixed in the branch now. " * 30),
    (
        "CHEAP MEDS online!!!",
        "Order now, 80% off, no prescription needed. Click http://pills.example.biz now! " * 8,
    ),
    (
        "You have won",
        "Congratulations! You won $1,000,000 in our lottery. Send your bank details to claim it.",
    ),
    ("Minutes", "Attached are the minutes of the meeting. Please send corrections to me by Thursday."),
]


def letter(subject: str, body: str, html: str | None = None) -> Event:
    return {**SpamTask.example, "subject": subject, "body": body, "html": html}


@pytest.fixture(scope="module")
def task() -> SpamTask:
    torch.set_num_threads(1)
    made = SpamTask()
    made.load(Device("cpu", "fp32"))
    return made


def prepared(task: SpamTask, events: list[Event]) -> list[Item]:
    items = task.prepare(events, [None] * len(events))
    assert all(isinstance(item, Item) for item in items)
    return [item for item in items if isinstance(item, Item)]


def judged(task: SpamTask, events: list[Event]) -> list[Event]:
    outputs = task.run([item.value for item in prepared(task, events)])
    return [task.finish(event, output, State()) for event, output in zip(events, outputs, strict=True)]


def probabilities(task: SpamTask, events: list[Event]) -> list[float]:
    return [verdict["probability"] for verdict in judged(task, events)]


def test_obvious_letters_get_obvious_verdicts(task: SpamTask) -> None:
    assert [verdict["label"] for verdict in judged(task, [letter(*one) for one in LETTERS])] == [
        "ham",
        "ham",
        "ham",
        "spam",
        "spam",
        "ham",
    ]


def test_neighbours_padding_and_order_do_not_matter(task: SpamTask) -> None:
    events = [letter(*one) for one in LETTERS]
    together = probabilities(task, events)
    alone = [probabilities(task, [event])[0] for event in events]
    assert together == pytest.approx(alone, abs=1e-4)
    assert probabilities(task, events[::-1])[::-1] == pytest.approx(alone, abs=1e-4)


def test_bf16_agrees_with_fp32(task: SpamTask) -> None:
    fast = SpamTask()
    fast.load(Device("cpu", "bf16"))
    events = [letter(*one) for one in LETTERS] * 3
    assert probabilities(fast, events) == pytest.approx(probabilities(task, events), abs=TOLERANCE)


def test_a_letter_without_words_gets_a_verdict_that_says_unknown(task: SpamTask) -> None:
    for empty in (letter("", ""), letter(" ", "\n\n", "<img src='x.gif'>")):
        (verdict,) = judged(task, [empty])
        assert (verdict["probability"], verdict["label"], verdict["sketch"]) == (0.5, "ham", None)


def apart(one: Event, other: Event) -> int:
    """Bits in which the sketches of two verdicts differ."""
    return int((one["sketch"] ^ other["sketch"]) & (1 << 64) - 1).bit_count()


def test_sketches_of_nearly_equal_letters_are_near_and_of_others_are_not(task: SpamTask) -> None:
    texts = [text for _, text in LETTERS if len(text) > 40]
    plain = judged(task, [letter("Hello", text) for text in texts])
    varied = judged(task, [letter("Hello", f"Dear Ann,\n{text} 4711") for text in texts])
    for place, verdict in enumerate(varied):
        assert all(-(1 << 63) <= each["sketch"] < 1 << 63 for each in plain)
        assert min(range(len(plain)), key=lambda other: apart(verdict, plain[other])) == place


@pytest.mark.parametrize(
    ("sender", "domain"),
    [
        ("Watches Direct <deals@Shop.Example.org>", "shop.example.org"),
        ("a@b.c", "b.c"),
        ('"joe@home" <joe@work.example.> ', "work.example"),
        ("<joe@xn--mnchen-3ya.de> (Joe)", "xn--mnchen-3ya.de"),
        ("joe@", None),
        ("nobody", None),
        (f"joe@{'x' * 300}", None),
        ("", None),
        (None, None),
    ],
)
def test_the_domain_of_the_sender(sender: str | None, domain: str | None) -> None:
    assert sender_domain(sender) == domain


def test_form_does_not_decide(task: SpamTask) -> None:
    """The same words as sent, as tokens in lower case, and as HTML."""
    for subject, body in (LETTERS[0], LETTERS[3], LETTERS[5]):
        spaced = "".join(f" {c} " if not c.isalnum() and not c.isspace() else c for c in body.lower())
        forms = [
            letter(subject, body),
            letter(subject.lower(), spaced),
            letter(subject, "", f"<p>{body}</p>"),
        ]
        found = probabilities(task, forms)
        assert max(found) - min(found) < 0.05


def test_an_item_costs_what_the_encoder_sees(task: SpamTask) -> None:
    short, long = prepared(task, [letter("hi", "there"), letter("hi", "word " * 9_000)])
    largest = task.largest()
    assert short.tokens == len(short.value)
    assert long.tokens == largest.tokens == ENCODER_IDS
    assert long.nbytes == largest.nbytes == long.value.nbytes
    assert np.isfinite(task.run([largest.value])).all()


def test_buckets_match_a_count_by_hand() -> None:
    ids = torch.tensor([[CLS, SEP, 5, 6, 5, 6, PAD], [CLS, SEP, 7, PAD, PAD, PAD, PAD]])
    rows = buckets(ids)
    none = 1 << HASH_BITS
    # unigrams, bigrams, trigrams, each once; then uni- and bigrams of the subject (here CLS, SEP)
    assert (rows != none).sum(1).tolist() == [4 + 4 + 4 + 2 + 1, 3 + 2 + 1 + 2 + 1]
    alone = buckets(ids[1:, :3])[0]
    assert set(alone.tolist()) - {none} == set(rows[1].tolist()) - {none}
    assert set(rows[0].tolist()) != set(buckets(torch.tensor([[CLS, SEP, 6, 5, 6, 5]]))[0].tolist())


def test_the_card_tells_what_is_shipped(task: SpamTask) -> None:
    card = json.loads((WEIGHTS / "card.json").read_text())
    assert card["version"] == task.version
    assert set(card["left_out"]) == {"spamassassin", "trec07p", "enron"}
    assert all(row["auc"] > 0.9 for row in card["left_out"].values())
    assert (WEIGHTS / "model.safetensors").stat().st_size < 1_500_000


def test_loading_imports_no_heavy_library() -> None:
    code = (
        "import sys; from consumer.tasks.spam import SpamTask; from consumer.task import Device;"
        "t = SpamTask(); t.load(Device('cpu', 'fp32'));"
        "t.run([i.value for i in t.prepare([t.example], [None])]);"
        "heavy = ('transformers', 'sklearn', 'scipy', 'sentence_transformers', 'confluent_kafka');"
        "print([m for m in heavy if m in sys.modules])"
    )
    done: Any = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True
    )
    assert done.stdout.strip() == "[]"


def test_another_threshold_changes_the_label_and_nothing_else() -> None:
    task = SpamTask(threshold="0.0001")
    task.load(Device())
    (made,) = task.prepare([task.example], [None])
    assert isinstance(made, Item)
    ((probability, sketch),) = task.run([made.value])
    assert task.finish(task.example, (probability, sketch), State()) == {
        "label": "spam",
        "probability": probability,
        "threshold": 0.0001,
        "time": task.example["received_at"],
        "sender_domain": "shop.example.org",
        "sketch": sketch,
        "dangerous_attachments": [],
    }


def test_a_dangerous_attachment_is_named_and_the_model_does_not_see_it() -> None:
    task = SpamTask()
    task.load(Device())
    attached = {"name": "invoice.pdf.exe", "media_type": "application/pdf", "size": 9}
    events = [task.example, {**task.example, "attachments": [attached]}]
    items = [item for item in task.prepare(events, [None, None]) if isinstance(item, Item)]
    plain, warned = (
        task.finish(event, output, State())
        for event, output in zip(events, task.run([item.value for item in items]), strict=True)
    )
    assert warned.pop("dangerous_attachments") == [{"name": "invoice.pdf.exe", "reason": "double_extension"}]
    assert plain.pop("dangerous_attachments") == []
    assert warned == plain


@pytest.mark.parametrize("threshold", ["much", "0", "1", "1.5", "-0.1", "nan"])
def test_a_threshold_that_is_none_is_refused(threshold: str) -> None:
    with pytest.raises(Fatal, match="between 0 and 1"):
        SpamTask(threshold=threshold)
