"""A small shop made up here: products, households with habits, and events."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from consumer.records import Event

TYPES = 40
GROUPS = 4
"""Types of one group are bought by the same households."""


def write_shop(folder: Path, households: int = 60, seed: int = 0) -> None:
    """transactions.parquet and products.parquet: three products a type, a year of purchases."""
    chance = random.Random(seed)
    products = [
        {
            "product_id": 1_000 * (kind + 1) + version,
            "department": "GROCERY",
            "product_category": f"GROUP {kind % GROUPS}",
            "product_type": f"TYPE {kind:02}",
            "brand": "National",
            "package_size": None,
        }
        for kind in range(TYPES)
        for version in range(3)
    ]
    start = int(datetime(2017, 1, 1, tzinfo=UTC).timestamp())
    rows: list[dict[str, Any]] = []
    for household in range(1, households + 1):
        liked = [kind for kind in range(TYPES) if kind % GROUPS == household % GROUPS]
        chance.shuffle(liked)
        for day in range(364):
            open_types = liked[: 3 + day // 60]  # the habits grow: something new every other month
            rows += [
                {
                    "household_id": household,
                    "product_id": 1_000 * (kind + 1) + household % 3,
                    "transaction_timestamp": start + day * 86_400 + chance.randrange(86_400),
                }
                for place, kind in enumerate(open_types)
                if chance.random() < 0.5 / (1 + place)
            ]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    columns["transaction_timestamp"] = pa.array(columns["transaction_timestamp"], pa.timestamp("s"))
    pq.write_table(pa.table(columns), folder / "transactions.parquet")
    pq.write_table(pa.Table.from_pylist(products), folder / "products.parquet")


def product(name: str, kind: str, **more: Any) -> Event:
    """A row of the table `products`."""
    row = {"id": name, "name": name.upper(), "type": kind, "category": "", "available": True}
    return {**row, "added_at": None, "popularity": 1.0, **more}


def click(user: str, what: str, time_ms: int, kind: str = "purchase", **more: Any) -> Event:
    """An event."""
    return {
        "id": f"{user}-{what}-{time_ms}",
        "user": user,
        "product": what,
        "kind": kind,
        "time": time_ms,
        **more,
    }
