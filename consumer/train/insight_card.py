"""The figures of the task `insight`, and its model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

__all__ = ["model_card", "table"]


def table(card: Mapping[str, Any]) -> Table:
    """Figures of every kind."""
    grid = Table(title=f"insight {card['version']}: anomalies put into real streams, one partition")
    grid.add_column("kind", no_wrap=True)
    for head in ("injected", "recall", "precision", "delay, hours", "delay, events", "false alarms a day"):
        grid.add_column(head, justify="right")
    for kind, row in card["figures"].items():
        grid.add_row(kind, *_cells(row))
    grid.caption = f"Seed {card['seed']}; protocol in MODEL_CARD.md.  Windows of an hour."
    return grid


def _cells(row: Mapping[str, Any]) -> list[str]:
    def said(name: str, form: str) -> str:
        return "-" if row[name] is None else format(row[name], form)

    return [
        str(row["injected"]),
        said("recall", ".2f"),
        said("precision", ".2f"),
        said("delay_hours", ".1f"),
        said("delay_events", "d"),
        f"{row['false_alarms_per_day']:.3f} ({row['false_alarms']} in {row['days']:.0f} days)",
    ]


def model_card(card: Mapping[str, Any]) -> str:
    """MODEL_CARD.md."""
    rows = "\n".join(f"| {kind} | {' | '.join(_cells(row))} |" for kind, row in card["figures"].items())
    return CARD.format(
        rows=rows, **{k: card[k] for k in ("version", "seed", "mails", "near", "figures", "thresholds")}
    )


CARD = """# Model card: insight {version}

What it does: says what is worth knowing in the results of the other tasks. No weights: exact tests with a least
effect and a least number, on windows of event time. `card.json` holds the thresholds, the chance that sketches of
unrelated mails are near ({near[bits]} of 64 bits or fewer: {near[chance]:g}), and the distribution of the spam
model's scores on {mails:,} mails that no weights were trained on.

## How sure
1 less the chance of seeing something so extreme, or more so, were nothing the matter; told is what has a chance of
{thresholds[chance]:g} at most in a single look:
- **spam_share**: beta-binomial, the domain's past share with Jeffreys' prior; the past counts for 200 mails at most.
- **campaign**: binomial tail of unrelated mails that fall near the group, times the 512 groups there can be.
- **redemption_drift**: binomial, two-sided; offers of different chances spread less, so it errs on the safe side.
- **score_shift**: the population stability index over (1/n + 1/m) is about chi-square with 10 degrees of freedom.
  Size is the index less its expected value under no shift. A model without reference here takes its first
  {thresholds[shift_reference]:,.0f} scores.
- **volume**: normal on the root scale, spread as wide as past windows spread (never less than Poisson); must be out
  of the band of the last day and of the same time of the days before.
- **new_object**: not a test: 1 less the chance, from the user's own past (Good and Turing), that the next upload shows
  something new.

It is the chance of one look. Who looks at many domains for many hours sees a rare thing sometimes: the last column.

## Protocol
One partition, windows of an hour, five minutes of lateness, shipped thresholds, seed {seed}; events run through the
task and the state that a worker keeps. Found is what is told with kind and subject and a window that touches the
anomaly; all else that is told of the kind in disturbed streams is false.
- **Mails**: real verdicts of the shipped spam model on the held-out third of SpamAssassin, drawn as a Poisson stream
  of 120 an hour, as the corpus has too few an hour for its own times. 20 trials of 4 days for each kind: a domain
  among the eight largest sends 10 real spam mails an hour beside its own for 6 hours; 30 variants of a real mail
  (other name, number, link and three words; verdicts by the real model) within an hour; log-odds halved for a day.
- **volume**: the 2017 baskets of Complete Journey at their own times; every ten days, by turns, three times as many
  from noon on for three hours, or none for six.
- **redemption_drift**: the discount model's probabilities for its test campaigns with what those households really
  redeemed, drawn with replacement, ten settled an hour; in the second half half, or once and a half, as many.
- **new_object**: what 150 households buy, 80 product categories in the place of objects, as there are no uploads of
  real users to be had; each household once, in the second half, gets a label that is in no basket.

| kind | injected | recall | precision | delay, hours | delay, events | false alarms a day |
|---|---|---|---|---|---|---|
{rows}

Of new_object an alarm on the undisturbed stream is not false, only not asked for: the household had in fact never
bought that. {figures[new_object][users]} households; mean stated chance of what was told:
{figures[new_object][mean_stated_chance]}.

## Limits
Each source partition is looked at alone: what is spread over many is seen in each only as far as it goes there. The
thresholds were set on these streams. A mail stream drawn at random has no daily rhythm and no threads, which makes
score_shift and spam_share look better than on a real mailbox. A campaign is seen by the first 128 word pieces of its
mails; some of them fall into a group of their own. What happens more slowly than the past forgets is not seen.
"""
