# SPDX-License-Identifier: Apache-2.0
"""From exchanges to figures, by hand; the client against a server that refuses."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest

from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.serving.overload import Client, Exchange, Outcome, Phases, Round, figures, rate, recovery
from aerie.benchmarks.serving.usage import Usage


def exchanges(count: int, every_s: float, seconds: float, start_s: float = 0.0) -> list[Exchange]:
    return [Exchange(start_s + index * every_s, seconds, "answered") for index in range(count)]


def test_the_rate_counts_answers_from_the_first_request_to_the_last_answer() -> None:
    assert rate([*exchanges(10, 1.0, 1.0), Exchange(0.0, 0.001, "refused")]) == 1.0
    with pytest.raises(BenchmarkError, match="no request was answered"):
        rate([Exchange(0.0, 1.0, "lost")])


def test_recovery_is_the_start_of_the_first_full_window() -> None:
    late = exchanges(30, 1.0, 0.0, start_s=105.0)
    assert recovery(late, 100.0, 1.0) == 5.0
    assert recovery(late, 105.0, 1.0) == 0.0
    assert recovery(late, 100.0, 2.0) == float("inf")


def test_figures_of_a_server_that_holds_its_promises() -> None:
    before = exchanges(40, 1.0, 2.0)
    refused = [Exchange(50.0, 0.02, "refused")] * 100
    after = exchanges(40, 1.0, 2.0, start_s=100.0)
    held = [{"front": Usage(20, 9, 300 + more), "others": Usage(9, 1, 9)} for more in (0, 1.5, 1.75)]
    overload = [*exchanges(40, 1.0, 3.0, start_s=50.0), *refused]
    told = figures(Phases(before, held[0], [Round(overload, after, 100.0, each) for each in held[1:]]))
    assert told["p99_ratio_accepted"] == 1.5
    assert told["reject_p99_ms"] == 20.0
    assert told["recovery_s"] == 2.0  # the first answers after it take so long
    assert told["lost"] == 0
    assert told["refused_overload"] == 200
    assert (told["memory_growth_mib_front"], told["memory_growth_mib_front_second"]) == (1.5, 0.25)


@contextlib.contextmanager
def answering(status: int, headers: dict[str, str]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "headers", "outcome"),
    [
        (200, {}, "answered"),
        (503, {"Retry-After": "1"}, "refused"),
        (429, {"Retry-After": "1"}, "refused"),
        (503, {}, "lost"),
        (500, {}, "lost"),
    ],
)
async def test_how_a_request_ended(status: int, headers: dict[str, str], outcome: Outcome) -> None:
    with answering(status, headers) as address:
        async with httpx.AsyncClient(base_url=address, trust_env=False) as http:
            assert (await Client(http, ["A cough"], 8).ask()).outcome == outcome


async def test_a_server_that_is_gone_loses_the_request() -> None:
    with answering(200, {}) as address:
        pass
    async with httpx.AsyncClient(base_url=address, trust_env=False) as http:
        assert (await Client(http, ["A cough"], 8).ask()).outcome == "lost"
