"""Shares of time are true ones: each activity's own, of training alone, and read without waiting for a device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from planet_dist import stopwatch
from planet_dist.stopwatch import Gradients, Stopwatch

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the stopwatch sees, in seconds; tests move it."""
    now = [1000.0]
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def take_step(watch: Stopwatch, clock: list[float], *, wait: float, compute: float, exchange: float) -> None:
    with watch.waiting():
        clock[0] += wait
    with watch.computing():
        clock[0] += compute
        with watch.exchanging():
            clock[0] += exchange
    watch.lap(images=50)


def test_each_share_is_of_the_time_since_the_last_reading(clock: list[float]) -> None:
    watch = Stopwatch(CPU, decode_threads=2)
    for _ in range(2):
        clock[0] += 0.5
        take_step(watch, clock, wait=1, compute=2, exchange=0.5)
        assert watch.read_lap() == 1
    assert watch.rates() == {
        "images_per_second": 12.5,
        "wait_share": 0.25,
        "decode_share": 0.0,
        "copy_share": 0.0,
        "compute_share": 0.5,
        "exchange_share": 0.125,
        "seconds": 8.0,
    }
    take_step(watch, clock, wait=0, compute=1, exchange=0)
    assert watch.read_lap() == 0
    again = watch.rates()
    assert (again["images_per_second"], again["compute_share"], again["exchange_share"]) == (50.0, 1.0, 0.0)


def test_a_step_has_its_own_time_however_late_it_is_read(clock: list[float]) -> None:
    watch = Stopwatch(CPU)
    take_step(watch, clock, wait=1, compute=1, exchange=0)
    take_step(watch, clock, wait=6, compute=2, exchange=0)
    clock[0] += 5
    waits, shares = [], []
    for _ in range(2):
        waits.append(watch.read_lap())
        rates = watch.rates()
        shares.append((rates["wait_share"], rates["compute_share"], rates["seconds"]))
    assert waits == [1, 6]
    assert shares == [(0.5, 0.5, 2.0), (0.75, 0.25, 8.0)]


def test_decoding_is_a_share_of_all_the_threads_time(clock: list[float]) -> None:
    watch = Stopwatch(CPU, decode_threads=4)

    def work(seconds: float) -> None:
        clock[0] += seconds

    watch.decode(work, 6)
    clock[0] += 4
    watch.lap(images=1)
    watch.read_lap()
    assert watch.rates()["decode_share"] == 6 / 40


def test_validating_and_saving_are_no_part_of_training_time(clock: list[float]) -> None:
    watch = Stopwatch(CPU)
    with watch.paused():
        watch.decode(lambda: clock.__setitem__(0, clock[0] + 100))
    take_step(watch, clock, wait=1, compute=1, exchange=0)
    watch.read_lap()
    rates = watch.rates()
    assert (rates["seconds"], rates["wait_share"], rates["images_per_second"]) == (2.0, 0.5, 25.0)
    assert rates["decode_share"] == 0


def test_read_twice_at_once_nothing_is_divided_by_zero(clock: list[float]) -> None:
    watch = Stopwatch(CPU)
    watch.rates()
    assert set(watch.rates().values()) == {0.0, 1e-9}


def test_switched_off_it_counts_nothing_and_still_does_the_work(clock: list[float]) -> None:
    watch, done = Stopwatch.off(), []
    take_step(watch, clock, wait=1, compute=1, exchange=1)
    watch.decode(done.append, 7)
    assert done == [7]
    assert {name for name, share in watch.rates().items() if share} == {"seconds"}


class Device:
    """Stands for a GPU's queue: events pass when the device comes to them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        self.reached = True
        device = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = device.seconds

            def query(self) -> bool:
                return device.reached

            def elapsed_time(self, end: Event) -> float:
                assert device.reached, "a time was asked for that isn't known yet"
                return 1000 * (end.at - self.at)

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**30)


def test_on_a_gpu_waiting_is_what_the_device_had_nothing_to_do(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Device(monkeypatch)
    watch = Stopwatch(torch.device("cuda"))
    for gap in (0.0, 1.0, 2.0):  # between steps, in the device's own time
        with watch.waiting():
            clock[0] += 0.1  # the host is ahead of the device, and its time says nothing of the device's
            gpu.seconds += gap
        with watch.computing():
            gpu.seconds += 3
            with watch.exchanging():
                gpu.seconds += 0.5
        clock[0] = 1020.0
        watch.lap(images=4)
        watch.read_lap()
    rates = watch.rates()
    assert rates["wait_share"] == pytest.approx(3 / 20)
    assert rates["compute_share"] == pytest.approx(9 / 20)
    assert rates["exchange_share"] == pytest.approx(1.5 / 20)
    assert rates["gpu_memory_gib"] == 3.0


def test_on_a_gpu_times_that_are_not_known_yet_are_read_later(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Device(monkeypatch)
    watch = Stopwatch(torch.device("cuda"))
    with watch.copying():
        gpu.seconds += 2
    with watch.computing():
        gpu.seconds += 4
    gpu.reached = False
    clock[0] += 10
    watch.lap(images=4)
    watch.read_lap()
    assert watch.rates()["compute_share"] == 0.0
    gpu.reached = True
    clock[0] += 10
    watch.lap(images=4)
    watch.read_lap()
    rates = watch.rates()
    assert (rates["compute_share"], rates["copy_share"]) == (0.4, 0.2)


def test_on_a_gpu_a_validation_between_two_steps_is_not_waiting(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Device(monkeypatch)
    watch = Stopwatch(torch.device("cuda"))
    with watch.computing():
        gpu.seconds += 1
    with watch.paused():
        gpu.seconds += 50
    with watch.waiting():
        gpu.seconds += 2
    with watch.computing():
        gpu.seconds += 1
    clock[0] += 10
    watch.lap(images=4)
    watch.read_lap()
    assert watch.rates()["wait_share"] == 0.2


class Noting(DistributedDataParallel):
    """A wrapped network whose account of its exchanges a test writes."""

    def __init__(self, noted: dict[str, int], device: str) -> None:
        nn.Module.__init__(self)
        self.noted, self.rate = noted, 0
        self.weight = nn.Parameter(torch.zeros(1, device=device))

    def _get_ddp_logging_data(self) -> dict[str, int]:
        return self.noted

    def _set_ddp_runtime_logging_sample_rate(self, sample_rate: int) -> None:
        self.rate = sample_rate


def test_gradients_count_from_the_end_of_the_backward_pass_and_every_step_once() -> None:
    second = 10**9
    noted: dict[str, Any] = {"iteration": 0}
    wrapped = Noting(noted, "cpu")
    gradients = Gradients(wrapped)
    assert wrapped.rate == 1
    assert gradients.exposed_seconds() == 0.0
    noted |= {"iteration": 4, "backward_comm_time": 0, "avg_backward_comm_time": 3 * second}
    noted |= {"avg_backward_compute_comm_overlap_time": second}
    assert gradients.exposed_seconds() == 8.0
    noted |= {"iteration": 6, "avg_backward_comm_time": 4 * second}
    assert gradients.exposed_seconds() == 10.0  # 18 in all
    assert gradients.exposed_seconds() == 0.0


def test_where_only_some_steps_are_noted_the_newest_stands_for_the_others() -> None:
    noted = {"iteration": 50, "backward_comm_time": 3 * 10**8, "backward_compute_comm_overlap_time": 10**8}
    wrapped = Noting(noted, "meta")
    gradients = Gradients(wrapped)
    assert wrapped.rate == 0, "a rate of its own would wait for the device in every step"
    assert gradients.exposed_seconds() == pytest.approx(10.0)
    noted["iteration"] = 60
    assert gradients.exposed_seconds() == pytest.approx(2.0)


def test_one_process_exchanges_no_gradients() -> None:
    assert Gradients(nn.Linear(2, 2)).exposed_seconds() == 0.0
