# SPDX-License-Identifier: Apache-2.0
"""The soak's verdict on series whose growth is known, what it reads of a process, and the leak it must find."""

import os
import random
import threading
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from aerie.benchmarks.serving.flatness import FEWEST, Verdict, trend
from aerie.benchmarks.serving.gauges import Gauges
from aerie.benchmarks.serving.leaky_server import PLANT, REQUESTS_PER_FD, Leak, leaky_command
from aerie.benchmarks.serving.mixed_load import MixedLoad
from aerie.benchmarks.serving.processes import serve_command
from aerie.benchmarks.serving.soak import BOUNDS, Recording, Sample, failures, figures
from aerie.benchmarks.serving.usage import Usage, role

POINTS, THOUSANDS = 40, 8.0
BOUND = BOUNDS["memory_mib"]


def series(per_thousand: float, noise: float, points: int = POINTS, seed: int = 0) -> tuple[list[float], list[float]]:
    rng = random.Random(seed)
    x = [THOUSANDS * index / (points - 1) for index in range(points)]
    return x, [500 + per_thousand * one + rng.gauss(0, noise) for one in x]


@pytest.mark.parametrize(
    ("per_thousand", "noise", "verdict"),
    [
        (0, 0, "flat"),
        (0, 2, "flat"),
        (-5, 2, "flat"),
        (0.3, 0.5, "flat"),
        (2, 0, "growing"),
        (2, 2, "growing"),
        (8, 8, "growing"),
        (1, 4, "undecided"),
        (0, 40, "undecided"),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_the_verdict_on_a_series(per_thousand: float, noise: float, verdict: Verdict, seed: int) -> None:
    assert trend(*series(per_thousand, noise, seed=seed)).verdict(BOUND) == verdict


def test_the_slope_is_exact_without_noise_and_deaf_to_outliers() -> None:
    x, y = series(2, 0)
    assert trend(x, y).slope == pytest.approx(2)
    for index in range(0, POINTS, 8):
        y[index] += 300
    assert trend(x, y).slope == pytest.approx(2, abs=0.2)
    assert trend(x, y).verdict(BOUND) == "growing"


def test_one_step_is_no_leak() -> None:
    x, _ = series(0, 0)
    assert trend(x, [20 + (one > THOUSANDS / 2) for one in x]).verdict(BOUNDS["fds"]) == "flat"


@pytest.mark.parametrize("points", [2, FEWEST - 1])
def test_a_handful_of_points_decides_nothing(points: int) -> None:
    assert trend(*series(0, 0, points)).verdict(BOUND) == trend(*series(50, 0, points)).verdict(BOUND) == "undecided"


def recording(name: str, memory_per_thousand: float, fds_per_thousand: float, kv_usage: float = 0) -> Recording:
    """A run of 8,000 requests whose first quarter is anything."""
    load = MixedLoad("demo", [[{"role": "user", "content": "A cough"}]], 8, random.Random(0))
    load.ended["chat", "answered"] = 8000
    made = Recording(name, load)
    for index in range(POINTS + 1):
        thousands = THOUSANDS * index / POINTS
        grown = memory_per_thousand * thousands if thousands >= 2 else 100 * index
        fds = int(fds_per_thousand * thousands)
        held = {
            "front": Usage(40 + fds, 9 + fds, 300 + grown),
            "worker": Usage(30, 12, 900.0),
            "others": Usage(9, 1, 9),
        }
        told = Gauges(0, 0, 0, kv_usage)
        made.samples.append(Sample(index, int(1000 * thousands), held, (told, 0.25)))
    return made


def test_figures_of_a_server_that_does_not_leak() -> None:
    ours, leaky = recording("aerie", 0, 0), recording("planted leak", 8, 50)
    told = figures(ours, leaky)
    assert (told["flat"], told["control_flagged"], told["lost"], told["requests"]) == (1, 1, 0, 8000)
    assert told["memory_mib_per_1000_requests_front"] == told["fds_growth_front"] == 0
    assert told["control_memory_mib_per_1000_requests"] == 8
    assert told["idle_after_s"] == 0.25
    assert "memory_mib_others" not in told  # helpers come and go
    assert failures(ours, told) == []


def test_what_is_wrong_is_told() -> None:
    leaks = recording("aerie", 4, 0, kv_usage=0.01)
    leaks.load.ended["chat", "lost"] = 2
    told = figures(leaks, recording("planted leak", 0, 50))
    assert (told["flat"], told["control_flagged"]) == (0, 0)
    assert failures(leaks, told) == [
        "front memory_mib: growing",
        "2 requests were lost",
        "the server kept something when idle",
        "the planted leak was not found",
    ]


def test_a_run_too_short_to_judge_is_still_told() -> None:
    short = recording("aerie", 0, 0)
    short.samples = short.samples[-FEWEST + 1 :]
    told = figures(short, recording("planted leak", 8, 50))
    assert told["flat"] == 0
    assert "memory_mib_per_1000_requests_front_high" not in told
    assert "front memory_mib: undecided" in failures(short, told)


async def test_the_planted_leak_leaks() -> None:
    app = FastAPI()
    app.add_middleware(Leak)
    before = Usage.of(os.getpid())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://soak") as http:
        for _ in range(2 * REQUESTS_PER_FD):
            await http.get("/v1/models")
        await http.get("/metrics")
    grown = Usage.of(os.getpid()).fds - before.fds
    assert grown >= 2


def test_usage_is_this_processes_own() -> None:
    before, done = Usage.of(os.getpid()), threading.Event()
    held = bytearray(os.urandom(64 << 20))
    thread = threading.Thread(target=done.wait)
    thread.start()
    with Path(os.devnull).open() as file:
        after = Usage.of(os.getpid())
        assert file.readable()
    done.set()
    thread.join()
    assert len(held) == 64 << 20
    assert after.memory_mib - before.memory_mib > 48
    assert after.threads >= before.threads + 1
    assert after.fds >= before.fds + 1


def test_roles() -> None:
    assert [role("VLLM::EngineCore"), role("VLLM::Worker"), role("python -c resource_tracker")] == [
        "engine",
        "worker",
        "others",
    ]


def test_gauges_of_a_page() -> None:
    page = 'vllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_waiting{engine="0"} 0.0\n'
    page += 'vllm:num_requests_waiting_by_reason{reason="x"} 7.0\naerie:requests_in_flight 3.0\n'
    told = Gauges.read(page + 'vllm:kv_cache_usage_perc{engine="0"} 0.25\n')
    assert told == Gauges(2, 0, 3, 0.25)
    assert not told.idle
    assert Gauges(0, 0, 0, 0).idle


def test_the_leaky_server_is_ours_in_one_line_more() -> None:
    assert [word.removeprefix(PLANT) for word in leaky_command(8000, ["--draft", "none"])] == serve_command(
        8000, ["--draft", "none"]
    )
    assert any(word.startswith(PLANT) for word in leaky_command(8000, []))
