"""What a first start says before it fetches anything."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from consumer.local import supplies
from consumer.local.feeds import PARTS
from consumer.local.supplies import Supply, fetch, missing


def test_it_says_what_comes_how_much_and_how_long_before_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSUMER_CACHE", str(tmp_path))
    console = Console(width=200, record=True, file=io.StringIO())
    said: list[str] = []

    def come(_: Console) -> None:
        said.append(console.export_text(clear=False))

    there: set[str] = {"c"}
    made = [Supply(name, "by npm", 200, lambda name=name: name in there, come) for name in "abc"]  # type: ignore[misc]
    fetch([*made, made[0]], console)
    assert len(said) == 2
    assert "400 MB" in said[0] and "40 s" in said[0] and "3 min" in said[0] and str(tmp_path) in said[0]
    assert "a: 200 MB, by npm" in said[0] and "b: 200 MB, by npm" in said[0] and "c:" not in said[0]


def test_a_later_start_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    fetch([Supply("a", "by npm", 200, lambda: True, lambda console: pytest.fail("fetched"))], Console())
    assert capsys.readouterr().out == ""


def test_an_empty_cache_lacks_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = [supplies.KAFKA, *(supply for part in PARTS.values() for supply in part.supplies)]
    monkeypatch.setenv("CONSUMER_CACHE", str(tmp_path))
    assert missing(needed) == needed
