# SPDX-License-Identifier: Apache-2.0
"""Requests of every kind that a server sees, with clients that leave and requests that must be refused.

No two prompts are the same, so that whatever is kept by prompt is kept for every request. Schemas are a handful, as an
application's are: the compiler of grammars keeps what it compiled, up to a bound of its own.
"""

import asyncio
import itertools
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

from aerie.benchmarks.prompts import Messages

TIMEOUT_S = 300.0
LONGEST_STAY = 1.5
"""Seconds after which a client that leaves has left; it may have its answer before."""
MOST_EVENTS = 24
Ending = Literal["whole", "stream", "leave", "leave_stream", "refused"]
Outcome = Literal["answered", "refused", "left", "overloaded", "lost"]

_SCHEMA = {
    "type": "object",
    "properties": {"urgent": {"type": "boolean"}, "days": {"type": "integer"}, "note": {"enum": ["rest", "visit"]}},
    "required": ["urgent", "days", "note"],
    "additionalProperties": False,
}
_OBJECT = {"response_format": {"type": "json_schema", "json_schema": {"name": "triage", "schema": _SCHEMA}}}
_CHOICE = {"structured_outputs": {"choice": ["routine", "urgent", "emergency"]}}
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


@dataclass(frozen=True)
class Kind:
    """How a request looks, how its client behaves, and its share of the load."""

    name: str
    path: str
    ending: Ending
    weight: int
    fields: dict[str, Any] = field(default_factory=dict)


KINDS = (
    Kind("completion", COMPLETIONS, "whole", 3),
    Kind("completion_choices", COMPLETIONS, "whole", 1, {"n": 2, "temperature": 1.0, "seed": 1, "logprobs": 3}),
    Kind("completion_stream", COMPLETIONS, "stream", 3),
    Kind("completion_choice", COMPLETIONS, "whole", 1, _CHOICE),
    Kind("chat", CHAT, "whole", 2),
    Kind("chat_stream", CHAT, "stream", 3, {"temperature": 0.8, "top_p": 0.9}),
    Kind("chat_object", CHAT, "whole", 1, _OBJECT),
    Kind("chat_object_stream", CHAT, "stream", 1, _OBJECT),
    Kind("leave", COMPLETIONS, "leave", 2, {"ignore_eos": True}),
    Kind("leave_chat_object", CHAT, "leave", 1, _OBJECT),
    Kind("leave_stream", COMPLETIONS, "leave_stream", 2, {"ignore_eos": True}),
    Kind("leave_chat_stream", CHAT, "leave_stream", 2),
    Kind("unknown_field", CHAT, "refused", 1, {"temprature": 1}),
    Kind("out_of_range", COMPLETIONS, "refused", 1, {"temperature": -1}),
    Kind("unknown_model", CHAT, "refused", 1, {"model": "nobody"}),
    Kind("bad_schema", CHAT, "refused", 1, {"response_format": {"type": "json_schema", "json_schema": {"name": 1}}}),
    Kind("too_long", COMPLETIONS, "refused", 1, {"max_tokens": 10**6}),
    Kind("unknown_route", "/v1/nothing", "refused", 1),
)


@asynccontextmanager
async def connections(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of HTTP without a limit of its own; its connections are closed at the end."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=16)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits, trust_env=False) as http:
        yield http


class MixedLoad:
    """Sends requests and counts how they end, by kind and outcome."""

    def __init__(self, model: str, chats: Sequence[Messages], max_tokens: int, rng: random.Random) -> None:
        self._common = {"model": model, "max_tokens": max_tokens, "temperature": 0}
        self._chats = itertools.cycle(chats)
        self._serial = itertools.count()
        self._rng = rng
        self.ended: Counter[tuple[str, Outcome]] = Counter()
        self.losses: list[str] = []

    @property
    def requests(self) -> int:
        """Those that ended, however."""
        return self.ended.total()

    def total(self, outcome: Outcome) -> int:
        """Those that ended so."""
        return sum(count for (_, ended), count in self.ended.items() if ended == outcome)

    async def run(self, url: str, concurrency: int, seconds: float) -> None:
        """`concurrency` in flight for a while; those that are then are waited for, and their connections closed."""
        deadline = asyncio.get_running_loop().time() + seconds
        async with connections(url) as http:

            async def one_after_another() -> None:
                while asyncio.get_running_loop().time() < deadline:
                    await self.ask(http)

            await asyncio.gather(*(one_after_another() for _ in range(concurrency)))

    async def ask(self, http: httpx.AsyncClient) -> None:
        """One request of a kind drawn by weight."""
        kind = self._rng.choices(KINDS, [kind.weight for kind in KINDS])[0]
        try:
            outcome, why = await self._send(http, kind, self._body(kind))
        except (httpx.HTTPError, ValueError) as error:
            outcome, why = "lost", repr(error)
        self.ended[kind.name, outcome] += 1
        if outcome == "lost":
            self.losses.append(f"{kind.name}: {why}"[:300])

    def _body(self, kind: Kind) -> dict[str, Any]:
        chat = [dict(message) for message in next(self._chats)]
        chat[-1]["content"] += f" ({next(self._serial)})"
        said = {"messages": chat} if kind.path == CHAT else {"prompt": chat[-1]["content"]}
        stream = {"stream": True} if kind.ending in ("stream", "leave_stream") else {}
        return {**self._common, **said, **stream, **kind.fields}

    async def _send(self, http: httpx.AsyncClient, kind: Kind, body: dict[str, Any]) -> tuple[Outcome, str]:
        if kind.ending == "leave":
            stay = self._rng.uniform(0, LONGEST_STAY)
            try:
                return _judge(kind, await asyncio.wait_for(http.post(kind.path, json=body), stay))
            except TimeoutError:
                return "left", ""
        if kind.ending in ("whole", "refused"):
            return _judge(kind, await http.post(kind.path, json=body))
        events = self._rng.randint(0, MOST_EVENTS) if kind.ending == "leave_stream" else None
        return await _read_stream(http, kind, body, events)


def _judge(kind: Kind, answer: httpx.Response) -> tuple[Outcome, str]:
    status = answer.status_code
    if status == 503 and "retry-after" in answer.headers:
        return "overloaded", ""
    if kind.ending == "refused":
        told = 400 <= status < 500 and "error" in answer.json()
        return ("refused", "") if told else ("lost", f"{status} {answer.text}")
    # The text must be there: an empty body with status 200 is no answer.
    return ("answered", "") if status == 200 and answer.json()["choices"] else ("lost", f"{status} {answer.text}")


async def _read_stream(
    http: httpx.AsyncClient, kind: Kind, body: dict[str, Any], most: int | None
) -> tuple[Outcome, str]:
    """To its end, or away after `most` events."""
    async with http.stream("POST", kind.path, json=body) as answer:
        if answer.status_code != 200:
            await answer.aread()
            return _judge(kind, answer)
        if most == 0:
            return "left", ""
        last, count = "", 0
        async for line in answer.aiter_lines():
            if not line:
                continue
            last, count = line.removeprefix("data: "), count + 1
            if last != "[DONE]" and "error" in json.loads(last):
                return "lost", last
            if count == most:
                return "left", ""
    return ("answered", "") if last == "[DONE]" else ("lost", f"the stream ended with {last!r}")
