"""Mails to the token ids that the spam model reads; needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from consumer import text
from consumer.models.minilm import CLS, SEP, minilm_folder

__all__ = ["MAX_IDS", "Ids", "encode"]

MAX_IDS = 512
MAX_SUBJECT_IDS = 28
Ids = npt.NDArray[np.int32]


@lru_cache(maxsize=1)
def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def encode(letters: Sequence[tuple[str, str, str | None]]) -> list[Ids]:
    """(subject, body, html) of each mail -> `[CLS] subject [SEP] body [SEP]`, at most MAX_IDS ids."""
    subjects = [text.subject_text(subject) for subject, _, _ in letters]
    bodies = [text.body_text(body, html) for _, body, html in letters]
    encoded = _tokenizer().encode_batch([*subjects, *bodies], add_special_tokens=False)
    heads, tails = encoded[: len(letters)], encoded[len(letters) :]
    rows = []
    for head, tail in zip(heads, tails, strict=True):
        ids = [CLS, *head.ids[:MAX_SUBJECT_IDS], SEP, *tail.ids]
        rows.append(np.array([*ids[: MAX_IDS - 1], SEP], dtype=np.int32))
    return rows
