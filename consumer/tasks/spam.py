"""Task `spam`: is an e-mail spam?  Subject, text and HTML in; label, calibrated probability and threshold out.

Names of attachments are judged beside the model, which does not see them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from consumer.attachments import dangerous
from consumer.errors import BadRecord, Fatal
from consumer.exits import Exit
from consumer.models.minilm import PAD
from consumer.models.spam import ENCODER_IDS, WEIGHTS, WORDLESS_IDS, load_spam
from consumer.models.tokens import MAX_IDS, Ids, encode
from consumer.records import Event
from consumer.task import Budget, Item, State
from consumer.torch_task import TorchTask

__all__ = ["SpamTask", "sender_domain"]

_DOMAIN = re.compile(r"[\w.-]{1,253}(?=[>\s)\"';,]|$)")


class SpamTask(TorchTask):
    """A verdict on each e-mail.  One without any text gets one too: the model's for an empty letter."""

    name = "spam"
    events = ("email",)
    result = "spam_verdict"
    fields = ("id", "received_at", "from", "subject", "body", "html", "attachments")
    budget = Budget(max_batch_items=256, max_batch_tokens=4_096)
    tolerance = 0.02
    example: ClassVar[Event] = {
        "id": "20260301.4711@shop.example.org",
        "received_at": 1_772_366_400_000,
        "from": "Watches Direct <deals@shop.example.org>",
        "to": ["you@example.com"],
        "subject": "Last day: 80% off luxury watches!!!",
        "body": "Dear customer,\n\nthis offer ends TONIGHT. Click http://shop.example.org/w?id=8812 and save $1,200.\n",
        "html": None,
        "headers": {"mime-version": "1.0"},
        "attachments": [],
    }

    def __init__(self, threshold: float | str | None = None, weights: str | Path = WEIGHTS) -> None:
        """`threshold` replaces the one of the model card; `weights` is a folder that `consumer train spam` wrote."""
        self._wanted = None if threshold is None else _share(threshold)
        self._weights = Path(weights)

    def build(self, device: torch.device) -> None:
        loaded = load_spam(self._weights)
        self._model = loaded.model.to(device)
        self._threshold = loaded.threshold if self._wanted is None else self._wanted
        self.version = loaded.version

    def prepare(self, events: Sequence[Event], recalled: Sequence[Any]) -> Sequence[Item | BadRecord]:
        """Token ids of each mail; an item costs as many tokens as the encoder sees of it."""
        rows = encode([(event["subject"], event["body"], event.get("html")) for event in events])
        return [Item(ids, tokens=min(len(ids), ENCODER_IDS), nbytes=ids.nbytes) for ids in rows]

    def largest(self) -> Item:
        ids = np.arange(1_000, 1_000 + MAX_IDS, dtype=np.int32)
        return Item(ids, tokens=ENCODER_IDS, nbytes=ids.nbytes)

    def collate(self, items: Sequence[Ids]) -> Mapping[str, torch.Tensor]:
        ids = np.full((len(items), max(map(len, items))), PAD, dtype=np.int32)
        for row, item in zip(ids, items, strict=True):
            row[: len(item)] = item
        return {"ids": torch.from_numpy(ids)}

    def forward(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """ids (batch, length) -> (batch, 1 + SKETCH_BITS): probability of spam, and the sketch by its signs."""
        odds, sides = self._model.sketched(tensors["ids"])
        return torch.cat([torch.sigmoid(odds)[:, None], sides], 1)

    def read(self, outputs: torch.Tensor, items: Sequence[Ids]) -> Sequence[tuple[float, int | None]]:
        """Probability and sketch of each mail; a mail without words has no sketch."""
        bits = np.packbits(outputs[:, 1:].numpy() > 0, axis=1).view(">i8")[:, 0].tolist()
        return [
            (probability, sketch if len(ids) > WORDLESS_IDS else None)
            for probability, sketch, ids in zip(outputs[:, 0].tolist(), bits, items, strict=True)
        ]

    def finish(self, event: Event, output: tuple[float, int | None], state: State) -> Event:
        probability, sketch = output
        return {
            "label": "spam" if probability >= self._threshold else "ham",
            "probability": probability,
            "threshold": self._threshold,
            "time": event.get("received_at") or None,
            "sender_domain": sender_domain(event.get("from")),
            "sketch": sketch,
            "dangerous_attachments": dangerous(event.get("attachments", ())),
        }


def sender_domain(sender: str | None) -> str | None:
    """`Watches <deals@Shop.Example.org>` -> `shop.example.org`; None where there is no such thing."""
    _, at, rest = (sender or "").rpartition("@")
    found = _DOMAIN.match(rest) if at else None
    return found[0].rstrip(".").lower() or None if found else None


def _share(threshold: float | str) -> float:
    try:
        share = float(threshold)
    except ValueError:
        share = -1.0
    if not 0.0 < share < 1.0:
        raise Fatal(
            f"option threshold is {threshold!r}: it must be a number between 0 and 1", exit_code=Exit.USAGE
        )
    return share
