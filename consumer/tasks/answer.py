"""Task `answer`: questions answered by a language model, from the passages of the table `knowledge` or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch

from consumer.errors import BadRecord, Fatal
from consumer.exits import Exit
from consumer.models.answer import NOT_KNOWN, Answered, Answerer, Limits, Thresholds, judge
from consumer.models.generate import Chat, Language
from consumer.models.passages import Passages
from consumer.models.sentences import Sentences
from consumer.records import Event
from consumer.task import Budget, Device, Item, State, Task

__all__ = ["CARD", "AnswerTask"]

CARD = Path(__file__).parents[1] / "models" / "weights" / "answer" / "card.json"
MAX_QUESTION_CHARS = 1_000
_LIMITS = Limits()
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class AnswerTask(Task):
    """One answer for each question: a grounded one with citations, or NOT_KNOWN."""

    name = "answer"
    events = ("question",)
    result = "answer"
    fields = ("id", "text", "language", "time")
    on_device = True
    tables: ClassVar[Mapping[str, str]] = {"knowledge": "passage"}
    budget = Budget(max_batch_items=8, max_batch_age_ms=20.0)
    example: ClassVar[Event] = {
        "id": "q-000001",
        "user": "u-00000042",
        "text": "How many days do I have to return a jacket?",
        "language": "en",
        "time": 1_772_366_400_000,
    }

    def __init__(
        self,
        model: str | Path | None = None,
        dtype: str = "auto",
        languages: str = "en",
        passages: int | str = _LIMITS.passages,
        sentences: int | str = _LIMITS.sentences,
        max_prompt_tokens: int | str = _LIMITS.max_prompt_tokens,
        max_answer_tokens: int | str = _LIMITS.max_answer_tokens,
        relevance: float | str | None = None,
        support: float | str | None = None,
        quote: float | str | None = None,
    ) -> None:
        """`model` is a Hugging Face folder; without one it is SmolLM2-135M-Instruct, fetched at first use.

        `dtype`: fp32, bf16, fp16, or auto: fp32 on a CPU, where the same question then gets the same text whatever
        stands beside it, and the device's precision elsewhere. `languages`: comma-separated tags of what the model
        knows, * for all. `relevance`, `support` and `quote` replace thresholds of the card; `quote=2` never quotes.
        """
        if dtype != "auto" and dtype not in _DTYPES:
            raise _unusable("dtype", dtype, "auto, fp32, bf16 or fp16")
        self._folder = None if model is None else Path(model)
        self._wanted_dtype = dtype
        self._languages = frozenset(each.strip().lower() for each in languages.split(",")) - {""}
        self._limits = Limits(
            passages=_whole("passages", passages, 1),
            sentences=_whole("sentences", sentences, 0),
            max_prompt_tokens=_whole("max_prompt_tokens", max_prompt_tokens, 128),
            max_answer_tokens=_whole("max_answer_tokens", max_answer_tokens, 1),
        )
        card = json.loads(CARD.read_text())
        given = {"relevance": relevance, "support": support, "quote": quote}
        chosen = {
            name: card["thresholds"][name] if value is None else _number(name, value)
            for name, value in given.items()
        }
        self._thresholds = Thresholds(**chosen)
        self._card_version = str(card["version"])
        self.table = {"knowledge": {}}

    def load(self, device: Device) -> None:
        """Model and encoder; on an accelerator the largest batch once, so that what does not fit fails now."""
        place = torch.device(device.name)
        wanted = self._wanted_dtype
        if wanted == "auto":
            wanted = "fp32" if place.type == "cpu" else device.precision
        model, chat, version = _language(self._folder, place, _DTYPES[wanted])
        room = self._limits.max_prompt_tokens + self._limits.max_answer_tokens
        if room > model.positions:
            raise Fatal(
                f"the model has room for {model.positions} tokens, but prompt and answer may need {room}: lower the "
                "options max_prompt_tokens or max_answer_tokens",
                exit_code=Exit.USAGE,
            )
        self._passages = Passages(Sentences(place))
        self._answerer = Answerer(model, chat, self._passages, self._limits, place)
        if place.type != "cpu":
            self._answerer.rehearse(self.budget.max_batch_items)
        self.version = f"{self._card_version}-{version}-{wanted}"

    def prepare(self, events: Sequence[Event], recalled: Sequence[Any]) -> Sequence[Item | BadRecord]:
        """The question alone: neither the user nor anything else of the event reaches the model."""
        return [self._item(event) for event in events]

    def _item(self, event: Event) -> Item | BadRecord:
        text = event["text"].strip()
        if not any(sign.isalnum() for sign in text):
            return BadRecord("empty_question", "field `text` holds no word: there is nothing to answer")
        if len(text) > MAX_QUESTION_CHARS:
            detail = f"field `text` has {len(text)} characters, at most {MAX_QUESTION_CHARS} are read"
            return BadRecord("question_too_long", f"{detail}: ask shorter")
        language = (event.get("language") or "").lower()
        spoken = not language or "*" in self._languages or language.split("-")[0] in self._languages
        return Item(text if spoken else None, nbytes=4 * len(text))

    def run(self, items: Sequence[str | None]) -> Sequence[Answered]:
        """Question texts, None where the model does not know the language."""
        self._passages.refresh(self.table["knowledge"])
        drafts = iter(self._answerer.drafts([each for each in items if each], self._thresholds.relevance))
        return [judge(next(drafts), self._thresholds) if item else _FOREIGN for item in items]

    def finish(self, event: Event, output: Answered, state: State) -> Event:
        citations = [{"passage": passage, "score": score} for passage, score in output.citations]
        return {**asdict(output), "citations": citations, "time": event["time"]}


_FOREIGN = Answered(NOT_KNOWN, False, (), -1.0, 0.0, 0, 0, "language")


def _language(folder: Path | None, place: torch.device, dtype: torch.dtype) -> tuple[Language, Chat, str]:
    if folder is not None:
        from consumer.models.causal import load_folder

        return load_folder(folder, place, dtype)
    from consumer.models.smollm import VERSION, load_smollm

    model, chat = load_smollm()
    return model.to(place, dtype), chat, VERSION


def _whole(name: str, value: int | str, least: int) -> int:
    try:
        number = int(value)
    except ValueError:
        number = least - 1
    if number < least:
        raise _unusable(name, value, f"a whole number from {least} on")
    return number


def _number(name: str, value: float | str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not -1.0 <= number <= 2.0:
        raise _unusable(name, value, "a number between -1 and 2")
    return number


def _unusable(name: str, value: Any, wanted: str) -> Fatal:
    return Fatal(f"option {name} is {value!r}: it must be {wanted}", exit_code=Exit.USAGE)
