# SPDX-License-Identifier: Apache-2.0
"""What a server tells of itself on `/metrics`, and when it says that it has nothing left to do."""

import asyncio
import time
from dataclasses import astuple, dataclass
from typing import Self

import httpx

from aerie.benchmarks.serving.processes import Server

POLL_S = 0.2


@dataclass(frozen=True)
class Gauges:
    """Requests in the engine and before it, and the share of the KV cache in use."""

    running: float
    waiting: float
    in_flight: float
    kv_usage: float

    @classmethod
    def read(cls, page: str) -> Self:
        """From the text of `/metrics`."""
        return cls(
            total(page, "vllm:num_requests_running"),
            total(page, "vllm:num_requests_waiting"),
            total(page, "aerie:requests_in_flight"),
            total(page, "vllm:kv_cache_usage_perc"),
        )

    @property
    def idle(self) -> bool:
        """Whether nothing is held for any request."""
        return not any(astuple(self))


def total(page: str, name: str) -> float:
    """The sum of a metric over its labels."""
    lines = [line for line in page.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


async def until_idle(server: Server, timeout_s: float) -> tuple[Gauges, float]:
    """Ask until the server is idle or the time is up; the last answer, and the seconds that took."""
    began = time.monotonic()
    while True:
        # A connection of its own each time: a descriptor that is open now and then would be noise among descriptors.
        async with httpx.AsyncClient(base_url=server.url, timeout=timeout_s, trust_env=False) as http:
            told = Gauges.read((await http.get("/metrics")).text)
        waited = time.monotonic() - began
        if told.idle or waited > timeout_s:
            return told, waited
        await asyncio.sleep(POLL_S)
