"""From a question to an answer that rests on passages: search, draft, judge.

    question ─search─► passages ─prompt─► draft ─judge─► answer with citations, or an honest "not known"

The model may write what it likes: what no passage bears out is not published. Judging is pure, so that thresholds can
be chosen from drafts without writing them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from consumer.models import grounding
from consumer.models.generate import Chat, Generated, Language, generate
from consumer.models.passages import Found, Passages

__all__ = ["NOT_KNOWN", "Answered", "Answerer", "Draft", "Limits", "Thresholds", "judge"]

QUOTED = 2
"""Sentences of a quotation: those nearest to the question."""
NOT_KNOWN = "Not known: nothing in the knowledge base supports an answer."


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of prompt and answer."""

    passages: int = 1
    """Passages in the prompt; the small default model is confused by more than one."""
    sentences: int = 2
    """Sentences of each passage in the prompt, those nearest to the question; 0 means all."""
    max_prompt_tokens: int = 512
    max_answer_tokens: int = 48


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From where on an answer counts as known; chosen by `consumer train answer`."""

    relevance: float
    """Score that the nearest passage must have, or the model is not asked."""
    support: float
    """Share of the answer's words that the passages must contain."""
    quote: float
    """Score from which on the nearest sentence is quoted where the model's own words are not borne out."""


@dataclass(frozen=True, slots=True)
class Draft:
    """What was found and what the model wrote; `text` is None where it was not asked, or could not be."""

    question: str
    found: tuple[Found, ...]
    text: str | None
    ended: bool
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True, slots=True)
class Answered:
    """The own fields of an `answer`, but for the shape of the citations: (passage, score)."""

    answer: str
    known: bool
    citations: tuple[tuple[str, float], ...]
    relevance: float
    support: float
    prompt_tokens: int
    answer_tokens: int
    finish_reason: str


class Answerer:
    """Belongs to one thread; `passages` may change between calls."""

    def __init__(
        self,
        model: Language,
        chat: Chat,
        passages: Passages,
        limits: Limits,
        device: torch.device,
    ) -> None:
        self._model, self._chat, self._device = model, chat, device
        self._passages, self._limits = passages, limits

    def drafts(self, questions: Sequence[str], relevance: float) -> list[Draft]:
        """A draft for each question; the model is asked where a passage reaches `relevance`."""
        found = self._passages.search(questions, self._limits.passages)
        prompts = {
            row: ids
            for row, (question, each) in enumerate(zip(questions, found, strict=True))
            if each and each[0].score >= relevance and (ids := self.prompt(question, each)) is not None
        }
        made = dict(zip(prompts, self._written(list(prompts.values())), strict=True))
        return [
            self._draft(question, found[row], prompts.get(row, []), made.get(row))
            for row, question in enumerate(questions)
        ]

    def rehearse(self, count: int) -> None:
        """The largest batch once, for two tokens: raises where it does not fit into the device's memory."""
        longest = [[1] * self._limits.max_prompt_tokens] * count
        room = self._limits.max_answer_tokens
        generate(self._model, longest, frozenset(), room, lambda ids: len(ids) == 2, self._device)

    def prompt(self, question: str, found: Sequence[Found]) -> list[int] | None:
        """Ids of the whole prompt: sentences at the end go until it is within `max_prompt_tokens`; None if all must."""
        parts = [(each, _in_order(each, self._limits.sentences)) for each in found]
        while parts:
            texts = [(self._neutral(each.title), self._neutral(" ".join(shown))) for each, shown in parts]
            ids = self._chat.prompt(grounding.SYSTEM, grounding.ask(self._neutral(question), texts))
            if len(ids) <= self._limits.max_prompt_tokens:
                return ids
            last, shown = parts.pop()
            if len(shown) > 1:
                parts.append((last, shown[:-1]))
        return None

    def _neutral(self, text: str) -> str:
        return grounding.neutral(text, self._chat.controls)

    def _written(self, prompts: Sequence[list[int]]) -> list[Generated]:
        limit = self._limits.max_answer_tokens

        def stop(ids: list[int]) -> bool:
            """At a new line behind a sentence, and where the end goes round in circles."""
            last = self._chat.text(ids[-3:])
            said = last.rstrip()
            return ("\n" in last and said != "" and said[-1] != ":") or (
                len(ids) >= 16 and ids[-8:] == ids[-16:-8]
            )

        return generate(self._model, prompts, self._chat.ends, limit, stop, self._device)

    def _draft(
        self, question: str, found: Sequence[Found], prompt: list[int], made: Generated | None
    ) -> Draft:
        if made is None:
            return Draft(question, tuple(found), None, True, 0, 0)
        text = self._chat.text(made.ids)
        return Draft(question, tuple(found), text, made.ended, len(prompt), len(made.ids))


def _in_order(found: Found, count: int) -> list[str]:
    """The `count` nearest sentences (0: all) as they follow each other in the passage."""
    return sorted(found.sentences[: count or None], key=found.text.find)


def judge(draft: Draft, thresholds: Thresholds) -> Answered:
    """What is published of a draft: its text where passages bear it out, their own words, or NOT_KNOWN."""
    relevance = draft.found[0].score if draft.found else -1.0
    if not draft.found or relevance < thresholds.relevance:
        return _declined(draft, relevance, 0.0, "no_passage")
    if draft.text is None:
        return _declined(draft, relevance, 0.0, "too_long")
    nearest, known = draft.found[0], " ".join(f"{each.title}. {each.text}" for each in draft.found)
    text = grounding.tidy(draft.text, ended=draft.ended)
    support = 0.0
    if grounding.stands_alone(text, draft.question) and not grounding.contradicts(text, nearest.sentences[0]):
        support = grounding.support(text, known)
    if grounding.strange_names(draft.question, known):
        return _declined(draft, relevance, support, "unsupported")
    reason = "stop" if draft.ended else "length"
    if support < thresholds.support:
        if relevance < thresholds.quote:
            return _declined(draft, relevance, support, "unsupported")
        text, support, reason = grounding.neutral(" ".join(_in_order(nearest, QUOTED))), 1.0, "quoted"
    cited = [nearest] if reason == "quoted" else _cited(text, draft.found)
    citations = tuple((each.passage, each.score) for each in cited)
    return Answered(
        text, True, citations, relevance, support, draft.prompt_tokens, draft.answer_tokens, reason
    )


def _cited(text: str, found: Sequence[Found]) -> list[Found]:
    """The passages that share words with the answer, each once, nearest first."""
    first = {each.passage: each for each in reversed(found)}
    said = set(grounding.words(text))
    return [
        each
        for each in found
        if first[each.passage] is each and said & set(grounding.words(f"{each.title} {each.text}"))
    ]


def _declined(draft: Draft, relevance: float, support: float, reason: str) -> Answered:
    return Answered(
        NOT_KNOWN, False, (), relevance, support, draft.prompt_tokens, draft.answer_tokens, reason
    )
