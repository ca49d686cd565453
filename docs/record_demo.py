"""Writes docs/demo.svg: the demo's live board at about two thirds, and its summary.

python docs/record_demo.py
"""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console, RenderableType

from consumer.local import demo
from consumer.local.board import readable, summary
from consumer.local.ledger import Ledger

EVENTS = 2_000
ROWS = 8
MAILING_LIST = re.compile(r"^(Re: ?)*\[[\w .-]+\] ?[\w ,.?:'-]+$", re.IGNORECASE)
MILD_SPAM = re.compile(
    r"mortgage|interest|toner|inkjet|credit|loan|debt|rates|insurance|save|computer|website|business|vacation"
    r"|domain|cable|phone|marketing|income|software|antivirus|warranty|money",
    re.IGNORECASE,
)


def harmlessness(ledger: Ledger) -> int:
    """How many of the visible subjects are surely fit for a README."""
    shown = [subject for each in list(ledger.latest) if (subject := readable(each.subject))][:ROWS]
    return sum(bool(MAILING_LIST.search(subject) or MILD_SPAM.search(subject)) for subject in shown)


def main() -> int:
    best: tuple[int, RenderableType] = (-1, "")
    books = Ledger()

    def seen(ledger: Ledger, picture: RenderableType) -> None:
        nonlocal best, books
        books = ledger
        score = harmlessness(ledger)
        if 0.55 <= ledger.settled / EVENTS <= 0.8 and score > best[0]:
            best = score, picture

    code = demo.run(events=EVENTS, forever=False, seen=seen)
    recorder = Console(
        record=True, width=100, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    recorder.print(best[1])
    recorder.print()
    recorder.print(summary(books, under_way=demo.UNDER_WAY))
    recorder.save_svg(str(Path(__file__).with_name("demo.svg")), title="consumer demo")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
