"""Kind `spam_share`: a sender domain sends a larger share of spam than it did.

Row of a domain: {"seen": last window, "open": {window: [mails, spam]}, "run": [first window, last, mails, spam] | null,
"past": [mails, spam], "ids": first spam, [time, id] each, "hot": whether a rise was told and is not over}.

Closed windows are put together until they hold `share_mails`; that run is judged against the past and joins it.
"""

from __future__ import annotations

import zlib
from typing import Any

from consumer.task import State
from consumer.tasks.insight_chance import beta_binomial_above
from consumer.tasks.insight_terms import Finding, Thresholds, earliest, fits, place
from consumer.windows import Windows, add, closed

__all__ = ["close_domains", "count_mail"]

PARTS = 128
ROWS = 8
"""Domains in one part; of 1,024 in a partition those seen last are remembered."""
PAST_MAILS = 200
"""Beyond so many the past weighs half: a share may change slowly, and a large past would call every wobble sure."""
RUN_WINDOWS = 24
"""A run that takes longer joins the past unjudged."""
CALM = 0.5
"""Share of the least rise below which a rise is over."""


def part(number: int) -> str:
    return f"domains/{number}"


def count_mail(state: State, domain: str, window: int, *, spam: bool, time: int, name: str) -> None:
    """One mail of a domain."""
    if not fits(domain):
        return
    number = zlib.crc32(domain.encode()) % PARTS
    used = state.partition.setdefault("domains", [])
    if number not in used:
        used.append(number)
        used.sort()
    empty = {"seen": window, "open": {}, "run": None, "past": [0, 0], "ids": [], "hot": False}
    row = place(state.part(part(number)), domain, ROWS, empty)
    row["seen"] = max(row["seen"], window)
    add(row["open"], window, (1, int(spam)))
    if spam:
        earliest(row["ids"], time, name)


def close_domains(state: State, first: int, windows: Windows, enough: Thresholds) -> list[Finding]:
    """Judge what the windows before `first` have brought."""
    found = []
    for number in state.partition.get("domains", ()):
        for domain, row in state.part(part(number)).items():
            for window, (mails, spam) in closed(row["open"], first):
                run = row["run"] or [window, window, 0, 0]
                row["run"] = [run[0], window, run[2] + mails, run[3] + spam]
                finding = _judge(domain, row, windows, enough)
                if finding is not None:
                    found.append(finding)
    return found


def _judge(domain: str, row: dict[str, Any], windows: Windows, enough: Thresholds) -> Finding | None:
    """Judge the run if it is long enough, and let it join the past."""
    begin, last, mails, spam = row["run"]
    if mails < enough.share_mails and last - begin < RUN_WINDOWS:
        return None
    known, known_spam = row["past"]
    start, end = windows.begin(begin), windows.begin(last + 1)
    mine = [each for each in row["ids"] if each[0] < end]
    finding = None
    if mails >= enough.share_mails and known >= enough.share_known:
        share, usual = spam / mails, known_spam / known
        chance = beta_binomial_above(spam, mails, known_spam, known)
        if share - usual < enough.share_rise * CALM:
            row["hot"] = False
        elif not row["hot"] and share - usual >= enough.share_rise and chance <= enough.chance:
            row["hot"] = True
            finding = Finding(
                "spam_share", domain,
                f"{share:.0%} of {mails} mails from {domain} are called spam, before it were {usual:.0%}",
                share - usual, share, usual, mails, 1 - chance, mine[0][0] if mine else start, start, end,
                [name for _, name in mine],
            )  # fmt: skip
    weight = 0.5 if known + mails > PAST_MAILS else 1.0
    row["past"] = [round((known + mails) * weight, 2), round((known_spam + spam) * weight, 2)]
    row["run"], row["ids"] = None, [each for each in row["ids"] if each[0] >= end]
    return finding
