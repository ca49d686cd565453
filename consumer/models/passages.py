"""The passages that answers may rest on, as vectors, and the search for those near to a question.

A long passage is cut into windows of whole sentences. A window's score for a question is the mean of two cosines: with
the window, and with its nearest sentence; each alone found the right passage less often.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from consumer.models.sentences import Sentences
from consumer.records import Event

__all__ = ["Found", "Passages", "sentences_of", "windows_of"]

MAX_WINDOW_WORDS = 120
MAX_TEXT_CHARS = 20_000
"""Characters of a passage that are looked at; the rest of a longer one is ignored."""
MAX_TITLE_CHARS = 200
_END = re.compile(r"(?<=[.!?])\s+")
_WORDS = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class Found:
    """A window of a passage, its score for the question, and its sentences, nearest first."""

    passage: str
    title: str
    text: str
    score: float
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Window:
    text: str
    sentences: tuple[str, ...]
    vectors: Tensor
    """(1 + sentences, WIDTH): of the window, then of each sentence."""


@dataclass(frozen=True, slots=True)
class _Known:
    event: Event
    windows: tuple[_Window, ...]


def sentences_of(text: str) -> list[str]:
    """Text cut behind the signs that end a sentence, none longer than a window."""
    found = []
    for part in _END.split(text[:MAX_TEXT_CHARS].strip()):
        words = _WORDS.findall(part)
        found += [
            " ".join(words[at : at + MAX_WINDOW_WORDS]) for at in range(0, len(words), MAX_WINDOW_WORDS)
        ]
    return found


def windows_of(text: str) -> list[list[str]]:
    """Sentences of a text, gathered to windows of at most MAX_WINDOW_WORDS words."""
    windows: list[list[str]] = []
    room = 0
    for sentence in sentences_of(text):
        size = len(sentence.split())
        if size > room:
            windows.append([])
            room = MAX_WINDOW_WORDS
        windows[-1].append(sentence)
        room -= size
    return windows


class Passages:
    """Belongs to one thread.  `refresh` embeds only what is new or has changed."""

    def __init__(self, encode: Sentences) -> None:
        self._encode = encode
        self._known: dict[str, _Known] = {}
        self._windows: list[tuple[Event, _Window]] = []
        self._matrix = torch.empty(0, 0)  # (windows and sentences, WIDTH)
        self._owner = torch.empty(0, dtype=torch.long)  # (windows and sentences,): place in `_windows`
        self._heads = torch.empty(0, dtype=torch.long)  # (windows,): row of the window's own vector

    def refresh(self, rows: Mapping[str, Event]) -> None:
        """Know exactly `rows` from now on."""
        now = dict(rows)
        new = {
            key: row for key, row in now.items() if (old := self._known.get(key)) is None or old.event != row
        }
        gone = self._known.keys() - now.keys()
        if not new and not gone:
            return
        self._known = {key: known for key, known in self._known.items() if key in now} | self._embedded(new)
        # In the order of keys: who wins a tie must not depend on the order of arrival.
        self._windows = [
            (self._known[k].event, w) for k in sorted(self._known) for w in self._known[k].windows
        ]
        if not self._windows:
            return
        sizes = torch.tensor([len(window.vectors) for _, window in self._windows])
        self._matrix = torch.cat([window.vectors for _, window in self._windows])
        self._owner = torch.arange(len(sizes)).repeat_interleave(sizes).to(self._matrix.device)
        self._heads = (sizes.cumsum(0) - sizes).to(self._matrix.device)

    def _embedded(self, rows: Mapping[str, Event]) -> dict[str, _Known]:
        windows = [(key, sentences) for key, row in rows.items() for sentences in windows_of(row["text"])]
        texts: list[str] = []
        for key, sentences in windows:
            title = rows[key]["title"][:MAX_TITLE_CHARS]
            texts += [f"{title}. {part}" for part in (" ".join(sentences), *sentences)]
        vectors = self._encode(texts)
        made: dict[str, list[_Window]] = {key: [] for key in rows}
        at = 0
        for key, sentences in windows:
            size = 1 + len(sentences)
            made[key].append(_Window(" ".join(sentences), tuple(sentences), vectors[at : at + size]))
            at += size
        return {key: _Known(rows[key], tuple(each)) for key, each in made.items()}

    @torch.inference_mode()
    def search(self, questions: Sequence[str], count: int) -> list[list[Found]]:
        """The `count` nearest windows of each question, nearest first; fewer where there are fewer."""
        if not self._windows or not questions:
            return [[] for _ in questions]
        cosines = self._encode(questions) @ self._matrix.T  # (questions, windows and sentences)
        owner = self._owner.expand(len(questions), -1)
        start = torch.full((len(questions), len(self._windows)), -1.0, device=cosines.device)
        is_sentence = torch.ones(len(self._owner), dtype=torch.bool, device=cosines.device)
        is_sentence[self._heads] = False
        nearest = start.scatter_reduce(1, owner, cosines.masked_fill(~is_sentence, -1.0), "amax")
        scores, places = ((cosines[:, self._heads] + nearest) / 2).sort(dim=1, descending=True, stable=True)
        return [
            [self._found(place, score, row) for place, score in zip(best, at, strict=True)]
            for best, at, row in zip(
                places[:, :count].tolist(), scores[:, :count].tolist(), cosines, strict=True
            )
        ]

    def _found(self, place: int, score: float, cosines: Tensor) -> Found:
        event, window = self._windows[place]
        first = int(self._heads[place]) + 1
        order = (
            cosines[first : first + len(window.sentences)].sort(descending=True, stable=True).indices.tolist()
        )
        nearest = tuple(window.sentences[each] for each in order)
        return Found(event["id"], event["title"][:MAX_TITLE_CHARS], window.text, score, nearest)
