# SPDX-License-Identifier: Apache-2.0
"""Whose prefixes share a cache, and which bytes the engine reads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from aerie.server.keys import make_key
from aerie.server.rules.facts import Facts

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
ANTHROPIC, TOKENIZE = "/v1/messages", "/tokenize"
TURN = {"role": "user", "content": "Good morning."}
LEAST: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [TURN]},
    COMPLETIONS: {"prompt": "Good"},
    RESPONSES: {"input": [TURN]},
    ANTHROPIC: {"model": "m", "max_tokens": 5, "messages": [TURN]},
    TOKENIZE: {"messages": [TURN]},
}
Client = Callable[..., httpx.AsyncClient]
Told = Callable[[httpx.Response], dict[str, Any]]
MakeFacts = Callable[..., Facts]


@pytest.mark.parametrize("salt", ["", "a" * 65, "a b", "a/b", "a@b", "a\\b", "a\u0000b", "ä"])
async def test_a_salt_has_plain_characters(client: Client, facts: MakeFacts, told: Told, salt: str) -> None:
    async with client(facts=facts()) as http:
        answer = await http.post(CHAT, json={**LEAST[CHAT], "cache_salt": salt})
    assert told(answer)["param"] == "cache_salt"


async def test_each_key_has_a_prefix_cache_of_its_own(client: Client, facts: MakeFacts, tmp_path: Path) -> None:
    (alice, alices), (bob, bobs) = make_key("alice"), make_key("bob")
    (tmp_path / "keys").write_text(f"{alices}\n{bobs}\n")
    async with client(facts=facts(), api_key_file=str(tmp_path / "keys")) as http:
        salts = []
        for key, chosen in ((alice, None), (alice, None), (bob, None), (alice, "x"), (bob, "x")):
            for route in (CHAT, COMPLETIONS, RESPONSES, ANTHROPIC):
                fields = LEAST[route] if chosen is None else {**LEAST[route], "cache_salt": chosen}
                body = (await http.post(route, json=fields, headers={"x-api-key": key})).json()["body"]
            salts.append(body["cache_salt"])
        tokenized = await http.post(TOKENIZE, json=LEAST[TOKENIZE], headers={"x-api-key": alice})
    assert salts[0] == salts[1]
    assert len(set(salts)) == 4
    assert all(len(salt) == 64 and set(salt) <= set("0123456789abcdef") for salt in salts)
    assert "cache_salt" not in tokenized.json()["body"]


async def test_what_was_checked_is_what_arrives_and_headers_do_not_tell_of_other_bytes(
    client: Client, facts: MakeFacts
) -> None:
    text = b'{"messages": [{"role": "user", "content": "\\u0047ood"}], "seed": 1, "store": true}'
    async with client(facts=facts()) as http:
        arrived = (await http.post(CHAT, content=text, headers={"Content-Type": "application/json"})).json()
    assert arrived["body"] == {"messages": [{"role": "user", "content": "Good"}], "seed": 1}
    assert "content-length" not in arrived["headers"]
