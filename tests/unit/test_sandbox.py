"""The sandbox: whatever a function does in there, the caller gets an answer or a BadRecord, and goes on."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from consumer.errors import BadRecord, Fatal
from consumer.sandbox import Sandbox

MIB = 1 << 20


def behave(head: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    """Runs in the child: does what `head` says."""
    match head.get("do"):
        case "spin":
            while True:
                pass
        case "sleep":
            time.sleep(600)
        case "segfault":
            ctypes.string_at(0)
        case "abort":
            os.abort()
        case "exit":
            os._exit(7)
        case "hoard":
            return {"got": len(bytearray(head["bytes"]))}, b""
        case "reject":
            raise BadRecord("my_reason", "what was wrong")
        case "fail":
            raise ValueError("no good")
        case "environment":
            return {"names": list(os.environ)}, b""
        case "print":
            print("x" * 100_000)
            sys.stderr.write("y" * 100_000)
    return {"pid": os.getpid(), **head}, body[::-1]


def sandbox(cpu_s: float = 5.0, memory_bytes: int = 256 * MIB) -> Sandbox:
    return Sandbox(f"{__name__}:behave", cpu_s=cpu_s, memory_bytes=memory_bytes)


@pytest.fixture(scope="module")
def box() -> Sandbox:
    return sandbox()


def test_head_and_body_go_there_and_back(box: Sandbox) -> None:
    body = os.urandom(3 * MIB)
    head, back = box.call({"name": "ünïcode", "n": [1, None]}, body)
    assert (head["name"], head["n"], back) == ("ünïcode", [1, None], body[::-1])
    assert head["pid"] != os.getpid()
    assert box.call({}, b"")[1] == b""


def test_one_child_serves_one_thread(box: Sandbox) -> None:
    assert len({box.call({}, b"")[0]["pid"] for _ in range(5)}) == 1


@pytest.mark.parametrize(
    ("act", "reason", "detail"),
    [
        ("segfault", "decoder_crashed", "SIGSEGV"),
        ("abort", "decoder_crashed", "SIGABRT"),
        ("exit", "decoder_crashed", "exit code 7"),
        ("reject", "my_reason", "what was wrong"),
        ("fail", "prepare_failed", "ValueError: no good"),
    ],
)
def test_how_a_function_can_end(box: Sandbox, act: str, reason: str, detail: str) -> None:
    with pytest.raises(BadRecord, match=detail) as caught:
        box.call({"do": act}, b"")
    assert caught.value.reason == reason
    assert box.call({}, b"ab")[1] == b"ba"


@pytest.mark.parametrize("act", ["spin", "sleep"])
def test_a_function_that_hangs_is_ended(act: str) -> None:
    box = sandbox(cpu_s=0.2)
    begun = time.monotonic()
    with pytest.raises(BadRecord, match=r"0\.2 s") as caught:
        box.call({"do": act}, b"")
    assert caught.value.reason == "decoder_timed_out"
    assert time.monotonic() - begun < 30
    assert box.call({}, b"ab")[1] == b"ba"


def test_the_time_is_each_calls_own() -> None:
    box = sandbox(cpu_s=0.2)
    box.call({}, b"")
    for _ in range(400):
        box.call({}, bytes(100_000))


def test_memory_is_bounded_and_free_again_afterwards() -> None:
    box = sandbox(memory_bytes=64 * MIB)
    with pytest.raises(BadRecord) as caught:
        box.call({"do": "hoard", "bytes": 200 * MIB}, b"")
    assert caught.value.reason == "decoder_out_of_memory"
    assert box.call({"do": "hoard", "bytes": 30 * MIB}, b"")[0] == {"got": 30 * MIB}


def test_what_a_library_prints_is_no_answer(box: Sandbox) -> None:
    assert box.call({"do": "print"}, b"ab")[1] == b"ba"


def test_a_child_that_the_system_ended_costs_nothing(box: Sandbox) -> None:
    os.kill(box.call({}, b"")[0]["pid"], signal.SIGKILL)
    assert box.call({}, b"ab")[1] == b"ba"


def test_threads_do_not_wait_for_each_other() -> None:
    box, pids = sandbox(), set[int]()
    together = threading.Barrier(3)

    def work() -> None:
        together.wait()
        pids.update(box.call({}, bytes(5 * MIB))[0]["pid"] for _ in range(10))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= len(pids) <= 3


def test_children_end_with_the_sandbox() -> None:
    box = sandbox()
    child = psutil.Process(box.call({}, b"")[0]["pid"])
    box.close()
    assert not child.is_running()


def test_a_function_that_is_not_there_is_fatal() -> None:
    with pytest.raises(Fatal, match="no_such_function"):
        Sandbox("consumer.media:no_such_function", cpu_s=1, memory_bytes=MIB).call({}, b"")


def test_a_child_knows_no_secret_of_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    head, _ = sandbox().call({"do": "environment"}, b"")
    assert "PYTHONPATH" in head["names"] and "AWS_SECRET_ACCESS_KEY" not in head["names"]


def test_a_child_imports_neither_torch_nor_kafka(tmp_path: Path) -> None:
    (tmp_path / "look.py").write_text(
        "import sys\ndef at(head, body): return {'modules': list(sys.modules)}, b''\n"
    )
    sys.path.append(str(tmp_path))
    try:
        head, _ = Sandbox("look:at", cpu_s=5, memory_bytes=64 * MIB).call({}, b"")
    finally:
        sys.path.remove(str(tmp_path))
    assert not {"torch", "confluent_kafka", "pydantic"} & set(head["modules"])
