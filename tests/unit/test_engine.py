"""The device thread: it loads, warms up, runs batches in order, isolates what fails, and never dies in silence."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from consumer.batcher import Batch, Run
from consumer.engine import Done, Engine, Failed, Work, choose_device
from consumer.errors import BadRecord, Fatal, Retry
from consumer.task import Budget, Device, Item, Task

Answers = queue.SimpleQueue[Done | Failed]
Start = Callable[..., tuple[Engine, Answers]]
TIMEOUT_S = 10


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


class AcceleratorError(RuntimeError):
    """As torch names it."""


class Doubling(Task):
    """Doubles numbers; keeps a record of what it was asked for, step by step."""

    name = "doubling"
    example: ClassVar[dict[str, Any]] = {"id": "1", "number": 1}

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def prepare(self, events: Sequence[Any], recalled: Sequence[Any]) -> Sequence[Any]:
        return [Item(event["number"]) for event in events]

    def run(self, items: Sequence[Any]) -> Sequence[Any]:
        self.calls.append(("run", list(items)))
        return [2 * item for item in items]


class InSteps(Doubling):
    """The same in three steps, as on an accelerator; `fail[step]` is called with the numbers of each call."""

    def __init__(self, **fail: Callable[[Sequence[int]], None]) -> None:
        super().__init__()
        self.fail = fail

    def step(self, name: str, numbers: Sequence[int]) -> Sequence[int]:
        self.calls.append((name, list(numbers)))
        if name in self.fail:
            self.fail[name](numbers)
        return numbers

    def stage(self, items: Sequence[Any]) -> Any:
        return self.step("stage", items)

    def compute(self, staged: Any) -> Any:
        return self.step("compute", staged)

    def fetch(self, computed: Any) -> Sequence[Any]:
        return [2 * number for number in self.step("fetch", computed)]


def fail_for(number: int, error: BaseException, *, only_above: int = 0) -> Callable[[Sequence[int]], None]:
    """Raises `error` for batches with `number` in them that have more than `only_above` items."""

    def fail(numbers: Sequence[int]) -> None:
        if number in numbers and len(numbers) > only_above:
            raise error

    return fail


def work_of(number: int, values: Sequence[Any], **more: Any) -> Work:
    run = Run(1, 0, len(values), 1, 0, 0)
    return Work(Batch(number, (run,), len(values), 1, len(values), "items", 0), values, **more)


@pytest.fixture
def start() -> Iterator[Start]:
    engines: list[Engine] = []

    def begin(
        task: Task,
        *,
        budget: Budget | None = None,
        choose: Callable[[], Device] = Device,
        ahead: Sequence[Work] = (),
    ) -> tuple[Engine, Answers]:
        """A started engine; `ahead` is in its inbox before it begins."""
        answers: Answers = queue.SimpleQueue()
        engine = Engine(task, choose, budget or Budget(), answers.put)
        for work in ahead:
            engine.submit(work)
        engines.append(engine)
        engine.start()
        return engine, answers

    yield begin
    for engine in engines:
        engine.stop(TIMEOUT_S)


def done(answers: Answers) -> Done:
    answer = answers.get(timeout=TIMEOUT_S)
    assert isinstance(answer, Done), answer
    return answer


def failed(answers: Answers) -> Failed:
    answer = answers.get(timeout=TIMEOUT_S)
    assert isinstance(answer, Failed), answer
    return answer


# Loading and warming up.


class Breaking(Doubling):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def load(self, device: Device) -> None:
        raise self.error


@pytest.mark.parametrize("error", [OSError("no weights"), SystemExit(3), Retry("no registry")])
def test_a_model_that_does_not_load_is_fatal_with_its_cause(start: Start, error: BaseException) -> None:
    with pytest.raises(Fatal, match="task 'doubling' does not start") as caught:
        start(Breaking(error))
    assert caught.value.__cause__ is error
    assert type(error).__name__ in str(caught.value)


def test_a_task_that_says_itself_why_it_cannot_load_is_quoted_as_it_is(start: Start) -> None:
    error = Fatal("weights are missing: run consumer train", exit_code=4)
    with pytest.raises(Fatal) as caught:
        start(Breaking(error))
    assert caught.value is error


def test_a_device_that_is_not_there_is_fatal(start: Start) -> None:
    def choose() -> Device:
        raise Fatal("no such GPU")

    with pytest.raises(Fatal, match=r"^no such GPU$"):
        start(Doubling(), choose=choose)


def test_the_model_gets_the_device_that_was_chosen_on_the_thread_that_runs_it(start: Start) -> None:
    seen: list[tuple[str, Device | None]] = []

    class Watching(Doubling):
        def load(self, device: Device) -> None:
            seen.append((threading.current_thread().name, device))

        def run(self, items: Sequence[Any]) -> Sequence[Any]:
            seen.append((threading.current_thread().name, None))
            return items

    engine, _ = start(Watching(), choose=lambda: Device("mps", "fp16"))
    assert seen == [("device", Device("mps", "fp16")), ("device", None)]
    assert engine.device == Device("mps", "fp16")


def test_the_example_is_tried_before_anything_else(start: Start) -> None:
    task = Doubling()
    start(task)
    assert task.calls == [("run", [1])]


@pytest.mark.parametrize(
    ("budget", "count"),
    [
        (Budget(max_batch_items=6), 6),
        (Budget(max_batch_items=6, max_batch_tokens=400), 4),
        (Budget(max_batch_items=6, max_batch_bytes=35), 3),
        (Budget(max_batch_items=6, max_batch_tokens=99), 1),
        (Budget(max_batch_items=6, max_batch_bytes=0), 1),
    ],
)
def test_warm_up_runs_the_largest_batch_that_the_budget_allows(
    start: Start, budget: Budget, count: int
) -> None:
    class WithLargest(Doubling):
        def largest(self) -> Item:
            return Item(9, tokens=100, nbytes=10)

    task = WithLargest()
    start(task, budget=budget)
    assert task.calls == [("run", [1]), ("run", [9] * count)]


def test_on_a_device_the_example_stands_for_a_largest_item_that_is_not_named(start: Start) -> None:
    class OnDevice(Doubling):
        on_device = True

    task = OnDevice()
    start(task, budget=Budget(max_batch_items=5))
    assert task.calls == [("run", [1]), ("run", [1] * 5)]


def test_a_largest_batch_that_does_not_fit_is_fatal_and_says_what_to_lower(start: Start) -> None:
    class Huge(Doubling):
        def largest(self) -> Item:
            return Item(9, tokens=100)

        def run(self, items: Sequence[Any]) -> Sequence[Any]:
            if len(items) > 2:
                raise OutOfMemoryError("CUDA out of memory")
            return items

    with pytest.raises(Fatal, match=r"4 items of 100 tokens.*lower max_batch_items, max_batch_tokens"):
        start(Huge(), budget=Budget(max_batch_items=4))


class OddPrepare(Doubling):
    def __init__(self, made: Any) -> None:
        super().__init__()
        self.made = made

    def prepare(self, events: Sequence[Any], recalled: Sequence[Any]) -> Sequence[Any]:
        return [self.made]


@pytest.mark.parametrize(
    ("made", "why"),
    [(BadRecord("no_text", "nothing to read"), "no_text: nothing to read"), ("text", "prepare gave str")],
)
def test_a_task_that_cannot_prepare_its_own_example_does_not_start(start: Start, made: Any, why: str) -> None:
    with pytest.raises(Fatal, match=why):
        start(OddPrepare(made))


@pytest.mark.parametrize(
    ("outputs", "why"), [([], "0 outputs for 1 items"), (None, "NoneType"), ([BadRecord("odd")], "odd")]
)
def test_a_task_that_cannot_run_its_own_example_does_not_start(start: Start, outputs: Any, why: str) -> None:
    class Odd(Doubling):
        def run(self, items: Sequence[Any]) -> Any:
            return outputs

    with pytest.raises(Fatal, match=why):
        start(Odd())


# Running.


def test_outputs_belong_to_their_items_and_batches_stay_in_order(start: Start) -> None:
    engine, answers = start(InSteps())
    for number in range(1, 8):
        engine.submit(work_of(number, [number, 10 * number]))
    for number in range(1, 8):
        answer = done(answers)
        assert (answer.batch.number, list(answer.outputs)) == (number, [2 * number, 20 * number])
        assert not answer.out_of_memory
        assert answer.begun_ns <= answer.ended_ns


def test_the_next_batch_is_staged_before_the_outputs_of_this_one_are_fetched(start: Start) -> None:
    task = InSteps()
    _, answers = start(task, ahead=[work_of(n, [n * 10]) for n in (1, 2, 3)])
    for _ in range(3):
        done(answers)
    steps = [(name, numbers[0]) for name, numbers in task.calls if numbers != [1]]
    assert steps == [
        ("stage", 10),
        *(("compute", 10), ("stage", 20), ("fetch", 10)),
        *(("compute", 20), ("stage", 30), ("fetch", 20)),
        *(("compute", 30), ("fetch", 30)),
    ]


def test_outputs_are_given_before_the_next_batch_is_there(start: Start) -> None:
    engine, answers = start(InSteps())
    engine.submit(work_of(1, [10]))
    assert done(answers).outputs == [20]
    engine.submit(work_of(2, [20]))
    assert done(answers).outputs == [40]


@pytest.mark.parametrize("step", ["stage", "compute", "fetch"])
def test_a_poison_item_is_rejected_in_its_place(start: Start, step: str) -> None:
    poison = fail_for(30, ValueError("cannot be read"))
    ahead = [work_of(1, [10, 20, 30, 40, 50]), work_of(2, [60, 70])]
    _, answers = start(InSteps(**{step: poison}), ahead=ahead)
    first, second = done(answers), done(answers)
    bad = first.outputs[2]
    assert isinstance(bad, BadRecord)
    assert (bad.reason, bad.stage) == ("run_failed", "run")
    assert bad.detail.startswith("ValueError: cannot be read (at ")
    assert "test_engine.py:" in bad.detail
    assert [*first.outputs[:2], *first.outputs[3:]] == [20, 40, 80, 100]
    assert second.outputs == [120, 140]


@pytest.mark.parametrize("step", ["stage", "compute", "fetch"])
def test_a_poison_item_in_the_batch_that_is_staged_meanwhile_costs_the_running_one_nothing(
    start: Start, step: str
) -> None:
    poison = fail_for(30, ValueError("cannot be read"))
    ahead = [work_of(1, [10]), work_of(2, [20, 30]), work_of(3, [40])]
    _, answers = start(InSteps(**{step: poison}), ahead=ahead)
    first, second, third = done(answers), done(answers), done(answers)
    assert (first.outputs, third.outputs) == ([20], [80])
    assert second.outputs[0] == 40 and isinstance(second.outputs[1], BadRecord)


@pytest.mark.parametrize("step", ["stage", "compute", "fetch"])
def test_out_of_memory_is_told_so_that_the_budget_shrinks(start: Start, step: str) -> None:
    no_room = fail_for(10, OutOfMemoryError("CUDA out of memory"), only_above=2)
    _, answers = start(
        InSteps(**{step: no_room}), ahead=[work_of(1, [10, 20, 30, 40]), work_of(2, [50, 60, 70])]
    )
    first, second = done(answers), done(answers)
    assert first.out_of_memory and first.outputs == [20, 40, 60, 80]
    assert not second.out_of_memory and second.outputs == [100, 120, 140]


def test_staging_that_finds_no_room_beside_a_running_batch_is_tried_again_when_it_has_ended(
    start: Start,
) -> None:
    tries: list[int] = []

    def no_room_at_first(numbers: Sequence[int]) -> None:
        if numbers[0] == 20:
            tries.append(1)
            if len(tries) == 1:
                raise OutOfMemoryError("CUDA out of memory")

    _, answers = start(InSteps(stage=no_room_at_first), ahead=[work_of(1, [10]), work_of(2, [20, 21])])
    done(answers)
    second = done(answers)
    assert second.outputs == [40, 42] and not second.out_of_memory


@pytest.mark.parametrize("step", ["stage", "compute", "fetch"])
def test_a_broken_device_fails_the_engine_after_what_was_already_computed(start: Start, step: str) -> None:
    error = AcceleratorError("CUDA error: device-side assert triggered")
    broken = InSteps(**{step: fail_for(20, error)})
    _, answers = start(broken, ahead=[work_of(1, [10]), work_of(2, [20]), work_of(3, [30])])
    assert done(answers).outputs == [20]
    answer = failed(answers)
    assert isinstance(answer.error, Fatal)
    assert answer.error.__cause__ is error
    assert ("compute", [30]) not in broken.calls


@pytest.mark.parametrize("step", ["stage", "compute", "fetch"])
@pytest.mark.parametrize("error", [Fatal("licence over"), Retry("store away")])
def test_retry_and_fatal_of_a_task_reach_the_loop_as_they_are(
    start: Start, step: str, error: Exception
) -> None:
    engine, answers = start(InSteps(**{step: fail_for(20, error)}))
    engine.submit(work_of(1, [20, 30]))
    assert failed(answers).error is error


def test_even_an_exit_on_the_device_thread_is_heard_of(start: Start) -> None:
    engine, answers = start(InSteps(fetch=fail_for(20, SystemExit(3))))
    engine.submit(work_of(1, [20]))
    assert "SystemExit: 3" in str(failed(answers).error)


def test_a_gpu_that_only_refused_a_call_keeps_the_process(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    cuda = SimpleNamespace(synchronize=asked.append)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    error = AcceleratorError("CUDA error: invalid configuration argument")
    engine, answers = start(InSteps(compute=fail_for(20, error)), choose=lambda: Device("cuda:1", "bf16"))
    engine.submit(work_of(1, [20, 30]))
    outputs = done(answers).outputs
    assert isinstance(outputs[0], BadRecord) and outputs[1] == 60
    assert set(asked) == {"cuda:1"}


def test_a_gpu_that_answers_no_more_ends_the_process(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    error = AcceleratorError("CUDA error: device-side assert triggered")

    def synchronize(device: str) -> None:
        raise error

    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(synchronize=synchronize)))
    engine, answers = start(InSteps(compute=fail_for(20, error)), choose=lambda: Device("cuda", "bf16"))
    engine.submit(work_of(1, [20, 30]))
    assert isinstance(failed(answers).error, Fatal)


def test_the_trace_of_a_batch_begins_with_its_work_and_ends_with_its_outputs(start: Start) -> None:
    task = InSteps()

    def trace(number: int) -> Callable[[], Any]:
        @contextmanager
        def open_span() -> Iterator[None]:
            yield
            task.calls.append(("end", number))

        def begin() -> Any:
            task.calls.append(("begin", number))
            return open_span()

        return begin

    _, answers = start(task, ahead=[work_of(n, [n * 10], begin_trace=trace(n)) for n in (1, 2)])
    done(answers)
    done(answers)
    names = [(name, what) for name, what in task.calls if what != [1]]
    for number in (1, 2):
        order = [("begin", number), ("compute", [number * 10]), ("fetch", [number * 10]), ("end", number)]
        places = [names.index(step) for step in order]
        assert all(one < other for one, other in pairwise(places))


# Stopping.


def test_stop_ends_after_what_is_queued(start: Start) -> None:
    begun, go_on, others = threading.Event(), threading.Event(), set(threading.enumerate())

    class Slow(Doubling):
        def run(self, items: Sequence[Any]) -> Sequence[Any]:
            if items != [1]:
                begun.set()
                assert go_on.wait(TIMEOUT_S)
            return items

    engine, answers = start(Slow())
    engine.submit(work_of(1, [10]))
    assert begun.wait(TIMEOUT_S)
    engine.submit(work_of(2, [20]))
    engine.stop(0)  # the deadline is over at once: the thread is left behind, with its work
    assert answers.empty()
    go_on.set()
    assert [done(answers).batch.number for _ in range(2)] == [1, 2]
    engine.stop(TIMEOUT_S)
    assert not set(threading.enumerate()) - others


def test_stop_is_harmless_before_the_start_and_after_a_failure(start: Start) -> None:
    Engine(Doubling(), Device, Budget(), lambda answer: None).stop(0)
    engine, answers = start(InSteps(compute=fail_for(20, Fatal("over"))))
    engine.submit(work_of(1, [20]))
    failed(answers)
    engine.submit(work_of(2, [30]))
    engine.stop(TIMEOUT_S)
    assert answers.empty()


# Choosing a device.


def fake_torch(
    *, cuda: bool = False, mps: bool = False, gpu_bf16: bool = False, cpu_bf16: bool = False
) -> Any:
    return SimpleNamespace(
        cuda=SimpleNamespace(
            is_available=lambda: cuda,
            is_bf16_supported=lambda including_emulation=True: gpu_bf16 or including_emulation,
        ),
        backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: mps)),
        cpu=SimpleNamespace(
            _is_avx512_bf16_supported=lambda: cpu_bf16, _is_amx_tile_supported=lambda: cpu_bf16
        ),
    )


@pytest.mark.parametrize(
    ("torch", "device", "precision", "expected"),
    [
        (fake_torch(cuda=True, gpu_bf16=True), "auto", "auto", Device("cuda", "bf16")),
        (fake_torch(cuda=True), "auto", "auto", Device("cuda", "fp16")),
        (fake_torch(cuda=True, gpu_bf16=True), "cuda:1", "fp32", Device("cuda:1", "fp32")),
        (fake_torch(cuda=True), "cpu", "auto", Device("cpu", "fp32")),
        (fake_torch(mps=True), "auto", "auto", Device("mps", "fp32")),
        (fake_torch(cpu_bf16=True), "auto", "auto", Device("cpu", "bf16")),
        (fake_torch(), "auto", "auto", Device("cpu", "fp32")),
        (fake_torch(), "cpu", "bf16", Device("cpu", "bf16")),
    ],
)
def test_the_device_is_the_best_there_is_unless_it_is_set(
    monkeypatch: pytest.MonkeyPatch, torch: Any, device: str, precision: str, expected: Device
) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert choose_device(device, precision) == expected


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_a_device_that_was_asked_for_and_is_not_there_is_fatal(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setitem(sys.modules, "torch", fake_torch())
    with pytest.raises(Fatal, match=f"{device!r} was asked for"):
        choose_device(device)


def test_without_torch_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(Fatal, match="pip install"):
        choose_device()


def test_the_real_torch_answers_all_that_is_asked() -> None:
    device = choose_device("cpu")
    assert device.name == "cpu" and device.precision in ("fp32", "bf16")
