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


def test_it_ends_with_clean_books(bootstrap_servers: str, tmp_path: Path) -> None:
    output = tmp_path / "shown"
    with demo(output, bootstrap_servers, "--events=220") as process:
        code = process.wait(240)
    text = output.read_text(errors="replace")
    assert code == 0, text
    end = " ".join(line for line in _plain(text[text.index("what went in") :]).split())
    for line in ("events 220", "dead letters 2", "duplicates 0", "missing 0", "accuracy"):
        assert line in end, text


def test_ctrl_c_ends_it_in_good_order(bootstrap_servers: str, tmp_path: Path) -> None:
    output = tmp_path / "shown"
    with demo(output, bootstrap_servers, "--forever") as process:

        def shows_a_verdict() -> bool:
            assert process.poll() is None, output.read_text(errors="replace")
            return "ham" in output.read_text(errors="replace")

        wait_until(shows_a_verdict, 120, lambda: output.read_text(errors="replace"))
        process.send_signal(signal.SIGINT)
        code = process.wait(90)
    text = output.read_text(errors="replace")
    assert code == 0, text
    end = " ".join(_plain(text[text.index("what went in") :]).split())
    assert "duplicates 0" in end
    assert "missing 0" in end


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
