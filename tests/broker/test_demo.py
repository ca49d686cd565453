"""The demo from outside, on a Kafka that is already there; its own is what `test_local_broker` tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from tests.waiting import wait_until


@contextmanager
def demo(output: Path, bootstrap_servers: str, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """`consumer demo` as on a terminal, with what it shows in a file."""
    with output.open("wb") as shown:
        process = subprocess.Popen(
            [sys.executable, "-m", "consumer", "demo", f"--bootstrap-servers={bootstrap_servers}", *flags],
            stdin=subprocess.DEVNULL,
            stdout=shown,
            stderr=subprocess.STDOUT,
            env=os.environ | {"COLUMNS": "120", "FORCE_COLOR": "1"},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)


def test_it_ends_with_clean_books_and_pictures_that_can_be_made_again(
    bootstrap_servers: str, tmp_path: Path
) -> None:
    output, pictures = tmp_path / "shown", tmp_path / "pictures"
    tasks = "--tasks=spam,discount,image"
    with demo(output, bootstrap_servers, tasks, "--events=200", f"--pictures={pictures}") as process:
        code = process.wait(240)
    text = _plain(output.read_text(errors="replace"))
    assert code == 0, text
    end = text[text.index("what went in") :]
    totals = {
        line.split()[0]: line.split()[1:7] for line in end.splitlines() if re.search(r"\d m?s *$", line)
    }
    assert totals["spam"] == [
        "200",
        "198",
        "0",
        "2",
        "0",
        "0",
    ]  # events, results, silent, dead, twice, missing
    assert totals["image"] == ["2", "1", "0", "1", "0", "0"]
    events, results, silent, dead, twice, missing = map(int, totals["discount"])
    assert (events, dead, twice, missing) == (50, 1, 0, 0)
    assert results + silent == 49 and silent > 0
    assert "accuracy" in end
    (command,) = re.findall(r"consumer (show image .+)", end)
    with Image.open(pictures / "photo.jpg") as picture:
        size = picture.size
    again = command.replace("out.png", str(tmp_path / "again.png")).split()
    subprocess.run([sys.executable, "-m", "consumer", *again], check=True, timeout=120, capture_output=True)
    with Image.open(tmp_path / "again.png") as picture:
        assert picture.size == size


def test_ctrl_c_ends_it_in_good_order(bootstrap_servers: str, tmp_path: Path) -> None:
    output = tmp_path / "shown"
    with demo(output, bootstrap_servers, "--tasks=spam", "--forever") as process:

        def shows_a_verdict() -> bool:
            assert process.poll() is None, output.read_text(errors="replace")
            return re.search(r"ham +\d", _plain(output.read_text(errors="replace"))) is not None

        wait_until(shows_a_verdict, 120, lambda: output.read_text(errors="replace"))
        process.send_signal(signal.SIGINT)
        code = process.wait(90)
    text = output.read_text(errors="replace")
    assert code == 0, text
    end = _plain(text[text.index("what went in") :])
    (totals,) = [line.split() for line in end.splitlines() if re.match(r"spam .+ m?s *$", line)]
    assert int(totals[1]) > 0
    assert totals[5:7] == ["0", "0"]


def test_an_unknown_task_is_refused_before_anything_starts(tmp_path: Path) -> None:
    output = tmp_path / "shown"
    with demo(output, "localhost:1", "--tasks=spma") as process:
        assert process.wait(60) == 2
    assert "the demo has no task spma" in _plain(output.read_text())


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
