"""Worker processes that die, stall, fail or go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from worker_jobs import Acts, NeverBegins, Order

from m3build.workers import Death, WorkerPool, pool
from m3build_formats.errors import InputError, ResourceError


def again(order: Order, death: Death) -> Order:
    return replace(order, tries=order.tries + 1)


def run(place: Path, *orders: Order, workers: int = 2) -> list[Any]:
    with WorkerPool[Order, Any](Acts(place), workers, place, again) as opened:
        return list(opened.results(orders))


def pids(place: Path) -> list[int]:
    return [int(path.name) for path in place.iterdir() if path.name.isdigit()]


def is_there(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_bytes().rpartition(b")")[2].split()[0] != b"Z"


def test_results_come_in_the_order_of_the_tasks_whatever_their_size_and_what_is_printed(
    tmp_path: Path,
) -> None:
    large = os.urandom(3_000_000)
    orders = [
        Order("wait", 0.6),
        Order("give", large),
        Order("print", 2),
        *(Order("give", n) for n in range(9)),
    ]
    assert run(tmp_path, *orders) == [0.6, large, 2, *range(9)]
    assert len(pids(tmp_path)) == 2
    assert not any(is_there(pid) for pid in pids(tmp_path))


def test_the_task_of_a_worker_that_dies_is_done_by_another_and_the_owner_learns_how_and_where(
    tmp_path: Path,
) -> None:
    deaths: list[Death] = []

    def noted(order: Order, death: Death) -> Order:
        deaths.append(death)
        return again(order, death)

    with WorkerPool[Order, Any](Acts(tmp_path), 1, tmp_path, noted) as opened:
        found = list(opened.results([Order("give", 1), Order("die", 7), Order("give", 3)]))
    assert found == [1, "die, again", 3]
    assert deaths == [Death("was ended by SIGKILL (about to end)", ("page", 7))]
    assert len(pids(tmp_path)) == 2


def test_a_worker_that_is_stopped_or_does_not_get_on_is_replaced_and_one_that_does_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "SILENT_SECONDS", 2.5)
    monkeypatch.setattr(pool, "STILL_SECONDS", 4.0)
    found = run(tmp_path, Order("stop"), Order("freeze"), Order("wait", 5.5), workers=3)
    assert found == ["stop, again", "freeze, again", 5.5]
    assert not any(is_there(pid) for pid in pids(tmp_path))


def test_what_a_task_raises_is_raised_in_the_build_and_no_worker_is_left(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing in a\.txt") as raised:
        run(tmp_path, Order("wait", 60), Order("raise", "a.txt"))
    assert "In a worker process" in raised.value.__notes__[0]
    assert "worker_jobs" in raised.value.__notes__[0]
    assert not any(is_there(pid) for pid in pids(tmp_path))


def test_workers_that_cannot_begin_are_not_tried_for_ever(tmp_path: Path) -> None:
    opened: WorkerPool[Order, Any]
    with (
        WorkerPool(NeverBegins(), 2, tmp_path, again) as opened,
        pytest.raises(ResourceError, match=r"do not start.*no such thing as a model.*--workers 1"),
    ):
        list(opened.results([Order("give", 1)]))


def test_the_last_tasks_wait_behind_no_busy_worker(tmp_path: Path) -> None:
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    # The first ends when the last is under way, in the other worker.
    assert run(tmp_path, Order("meet", (a, b)), Order("give", 2), Order("meet", (b, a))) == ["a", 2, "b"]


def test_a_worker_that_ends_before_it_is_ready_takes_none_of_its_tasks_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = WorkerPool._begin
    ended = 0

    def ends_the_first_two(self: Any) -> Any:
        nonlocal ended
        worker = begin(self)
        if ended < 2:
            ended += 1
            worker.process.kill()
        return worker

    monkeypatch.setattr(WorkerPool, "_begin", ends_the_first_two)
    assert run(tmp_path, *(Order("give", number) for number in range(12))) == list(range(12))
    assert ended == 2


def test_tasks_are_taken_as_they_are_needed(tmp_path: Path) -> None:
    taken = 0

    def orders() -> Iterator[Order]:
        nonlocal taken
        for number in range(20):
            taken += 1
            yield Order("give", number)

    with WorkerPool[Order, Any](Acts(tmp_path), 2, tmp_path, again) as opened:
        results = opened.results(orders())
        for number in range(20):
            assert next(results) == number
            assert taken <= number + 1 + 3 * 2


BUILD = """
import sys
from pathlib import Path
from worker_jobs import Acts, Order
from m3build.workers import WorkerPool
with WorkerPool(Acts(Path(sys.argv[1])), 1, Path(sys.argv[1]), None) as pool:
    list(pool.results([Order("freeze")]))
"""


def test_workers_end_when_their_build_is_killed(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    build = subprocess.Popen([sys.executable, "-c", BUILD, tmp_path], env=environment)
    try:
        while not pids(tmp_path):
            assert build.poll() is None
            time.sleep(0.05)
    finally:
        build.send_signal(signal.SIGKILL)
        build.wait()
    deadline = time.monotonic() + 60
    while any(is_there(pid) for pid in pids(tmp_path)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
