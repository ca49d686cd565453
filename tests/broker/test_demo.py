"""The demo from outside, on a Kafka that is already there; its own is what `test_local_broker` tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from tests.waiting import wait_until


def start(bootstrap_servers: str, *flags: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "consumer", "demo", f"--bootstrap-servers={bootstrap_servers}", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"COLUMNS": "120", "NO_COLOR": "1"},
        start_new_session=True,
    )


def test_it_ends_with_clean_books(bootstrap_servers: str) -> None:
    demo = start(bootstrap_servers, "--events=220")
    output, _ = demo.communicate(timeout=240)
    text = output.decode()
    assert demo.returncode == 0, text
    end = text[text.index("what went in") :]
    for line in ("events 220", "dead letters 2", "duplicates 0", "missing 0"):
        assert line in " ".join(end.split()), text
    assert "accuracy" in end


def test_ctrl_c_ends_it_in_good_order(bootstrap_servers: str) -> None:
    demo = start(bootstrap_servers, "--forever")
    assert demo.stdout is not None
    os.set_blocking(demo.stdout.fileno(), False)
    seen = bytearray()

    def shows_verdicts() -> bool:
        seen.extend(demo.stdout.read() or b"" if demo.stdout else b"")
        assert demo.poll() is None, seen.decode()
        return b"ham" in seen or b" spam  " in seen

    wait_until(shows_verdicts, 120, lambda: seen.decode())
    demo.send_signal(signal.SIGINT)
    deadline = time.monotonic() + 60
    while demo.poll() is None and time.monotonic() < deadline:
        seen.extend(demo.stdout.read() or b"")
        time.sleep(0.05)
    seen.extend(demo.stdout.read() or b"")
    demo.stdout.close()
    assert demo.returncode == 0, seen.decode()
    assert b"what went in" in seen
