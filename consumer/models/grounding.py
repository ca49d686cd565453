"""What goes into the prompt, and whether what came out rests on the passages.  Pure text, no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

__all__ = [
    "SYSTEM",
    "ask",
    "contradicts",
    "neutral",
    "stands_alone",
    "strange_names",
    "support",
    "tidy",
    "words",
]

SYSTEM = "Answer the question in one full sentence, using only the words of the text."

_CONTROL = re.compile(
    r"<\s*\|[^<>|]{0,40}\|\s*>|</?s>|\[/?(?:INST|SYS)\]|<</?SYS>>|<(?:start|end)_of_turn>", re.I
)
_SPACE = re.compile(r"\s+")
_INVISIBLE = re.compile(
    "[\\u0000-\\u0008\\u000e-\\u001f\\u007f\\u200b-\\u200f\\u202a-\\u202e\\u2060-\\u206f\\ufeff]"
)
_WORD = re.compile(r"\d+(?:[.,:]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)?")
_DENIAL = re.compile(r"\b(?:not?|never|none|nothing|neither|nor|without|cannot|only)\b|n['’]t\b", re.I)
_SENTENCE = re.compile(r".*[.!?](?=\s|$)", re.S)
_LEAD = re.compile(r"^(?:the answer(?: to (?:this|the|your) question)? is(?: that)?|answer)\s*[:,]?\s*", re.I)
_YES_NO = re.compile(r"^(?:yes|no)\b", re.I)
_BEGINS = re.compile(r"(?:^|[.!?:]\s)\s*$")
_ENDINGS = (
    "ations",
    "ation",
    "ings",
    "ing",
    "ies",
    "ied",
    "ers",
    "er",
    "est",
    "es",
    "ed",
    "ly",
    "s",
    "e",
    "y",
)
_NUMBERS = {
    name: str(number)
    for number, name in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve".split()
    )
}
_STOP = frozenset(
    """
    a about above after all also am an and any are as at be because been before being below between
    both but by can can't cannot could did do does doing don't down during each few for from further
    get had has have having he her here hers him his how i i'm if in into is isn't it it's its
    itself just many may me might more most much must my need no nor not now of off often on once
    only or other our ours out over own please same shall she should so some such than that the
    their theirs them then there these they this those through to too under until up upon us use
    very want was we we're were what when where which while who whom whose why will with would yes
    you your yours according text question answer passage
    """.split()
)


def neutral(text: str, controls: Iterable[str] = ()) -> str:
    """Text on one line that cannot be taken for part of a conversation's form, whatever model reads it.

    Control tokens and invisible characters become spaces, so that what stood on both sides of one cannot join to
    another.
    """
    before, text = "", _INVISIBLE.sub(" ", text)
    while text != before:  # what a token was hidden in may be one itself, now that it is gone
        before, text = text, _CONTROL.sub(" ", text)
        for control in controls:
            text = text.replace(control, " ")
        text = _SPACE.sub(" ", text)
    return text.strip()


def ask(question: str, texts: Sequence[tuple[str, str]]) -> str:
    """What the user's turn says; texts are (title, text)."""
    known = " ".join(f"{title}: {text}" if title else text for title, text in texts)
    return f"Text: {known}\n\nQuestion: {question}"


def tidy(text: str, *, ended: bool) -> str:
    """A draft without phrases that only lead to the answer; one that was cut off, up to its last whole sentence."""
    text = _LEAD.sub("", _SPACE.sub(" ", text).strip()).strip("\"' ")
    match = None if ended else _SENTENCE.match(text)
    text = match.group().strip() if match else text
    return text[:1].upper() + text[1:]


def stands_alone(answer: str, question: str) -> bool:
    """Whether an answer is a statement about what was asked: not a bare figure, not the question once more."""
    said, asked = set(words(answer)), set(words(question))
    return (
        not answer.endswith("?")
        and bool(said & asked)
        and (bool(said - asked) or bool(_YES_NO.match(answer)))
    )


def contradicts(answer: str, sentence: str) -> bool:
    """Whether a yes or no does not go with the sentence: only one of the two denies something."""
    return bool(_YES_NO.match(answer)) and bool(_DENIAL.search(answer)) != bool(_DENIAL.search(sentence))


def strange_names(question: str, text: str) -> list[str]:
    """Names and numbers in the question that the text does not contain: whatever it says is not about them.

    A name is a word with a capital that does not begin a sentence; a question in capitals has none.
    """
    found = [match for match in _WORD.finditer(question) if not _BEGINS.search(question[: match.start()])]
    names = [m.group() for m in found if m.group()[0].isupper() and m.group().lower() not in _STOP]
    numbers = [match.group() for match in _WORD.finditer(question) if match.group()[0].isdigit()]
    if len(names) > len(found) / 2 and len(found) > 2:
        names = []
    known = set(words(text))
    return [name for name in names + numbers if not set(words(name)) <= known]


def words(text: str) -> list[str]:
    """Words that carry meaning, as stems; numbers as digits."""
    found = [word.lower().replace("’", "'") for word in _WORD.findall(text)]
    return [_stem(word) for word in found if word not in _STOP]


def _stem(word: str) -> str:
    if word[0].isdigit():
        return word
    if word in _NUMBERS:
        return _NUMBERS[word]
    word = word.removesuffix("'s")
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word


def support(answer: str, text: str) -> float:
    """Share of the answer's words that the text contains, 0 to 1.

    0 for an answer that says nothing, for one with a number that the text does not have, and for a denial where the
    text denies nothing: those are inventions however well the other words fit.
    """
    said, known = words(answer), set(words(text))
    numbers = {word for word in said if word[0].isdigit()}
    if not said or numbers - known or (_DENIAL.search(answer) and not _DENIAL.search(text)):
        return 0.0
    return sum(word in known for word in said) / len(said)
