"""Labelled mail for training: token ids and where each mail comes from, never its text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.progress import track

from consumer.codec import read_container
from consumer.errors import Fatal
from consumer.models.tokens import Ids, encode
from consumer.text import held_out

__all__ = ["Mails", "read_mails"]


@dataclass(frozen=True, slots=True)
class Mails:
    """Columns of equal length, one entry a mail."""

    ids: list[Ids]
    spam: npt.NDArray[np.bool_]
    corpus: npt.NDArray[np.str_]
    family: npt.NDArray[np.str_]
    held: npt.NDArray[np.bool_]
    """The fixed third that shipped weights never see; only of `HELD_FAMILY`."""

    @property
    def families(self) -> list[str]:
        return sorted(set(self.family.tolist()))


HELD_FAMILY = "spamassassin"
"""The family that the demonstration streams."""


def read_mails(folder: Path) -> Mails:
    """All `*.avro` containers of LabelledEmail (subject, body, label, corpus) in `folder`.

    Raises Fatal where there are none, or fewer than three families.
    """
    ids: list[Ids] = []
    labels: list[tuple[bool, str, bool]] = []
    source = iter(track(_rows(folder), "reading mails", total=None))
    while rows := list(islice(source, 500)):
        ids += encode([(row["subject"], row["body"], None) for row in rows])
        labels += [(row["label"], row["corpus"], held_out(row["subject"], row["body"])) for row in rows]
    spam, corpus, held = (np.array(column) for column in zip(*labels, strict=True))
    family = np.array([_family(name) for name in corpus])
    mails = Mails(ids, spam, corpus, family, held & (family == HELD_FAMILY))
    if len(mails.families) < 3:
        raise Fatal(
            f"{folder} has mail of {len(mails.families)} families ({', '.join(mails.families)}): leaving one out, "
            "and choosing a threshold on another, needs at least three"
        )
    return mails


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    files = sorted(folder.glob("*.avro"))
    if not files:
        raise Fatal(f"no .avro files in {folder}: give a folder of labelled e-mail (--data)")
    for file in files:
        yield from read_container(file)


def _family(corpus: str) -> str:
    """Mailboxes of one source are one family: a model that knows enron2 knows enron3."""
    return corpus.rstrip("0123456789") if corpus.startswith("enron") else corpus
