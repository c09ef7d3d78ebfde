# SPDX-License-Identifier: Apache-2.0
"""A running server's front door: two keys, what asks and checks every answer, and a greedy canary.

Each module has a `server` of its own; it is started with `--api-key-file` of `keys`.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from aerie.server.keys import make_key

if TYPE_CHECKING:
    from tests.engine.conftest import Server

COMPLETIONS = "/v1/completions"
LEAKS = re.compile(r'0x[0-9a-fA-F]{6,}|File "|Traceback|/usr/|site-packages|safetensors')
Keys = tuple[str, str, Path]
Ask = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """Two keys, and the file that lets them in."""
    (alice, alices), (bob, bobs) = make_key("alice"), make_key("bob")
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"{alices}\n{bobs}\n")
    return alice, bob, path


@pytest.fixture(scope="module")
def ask(server: "Server", keys: Keys) -> Iterator[Ask]:
    """`ask(route, body or bytes, key=…)`: the answer, checked to be no failure and to tell nothing of the machine."""
    # Idle connections are left before a server whose `--keep-alive-seconds` are few closes them.
    limits = httpx.Limits(keepalive_expiry=2)
    with httpx.Client(base_url=server.address, timeout=120, trust_env=False, limits=limits) as http:

        def asking(route: str, body: object, key: str = keys[0], **headers: str) -> httpx.Response:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            named = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", **headers}
            answer = http.post(route, content=content, headers=named)
            assert answer.status_code < 500, (content[:200], answer.text)
            if answer.status_code >= 400:
                assert not LEAKS.search(answer.text), answer.text
                assert len(answer.content) < 4096
            return answer

        yield asking


@pytest.fixture
def canary(ask: Ask) -> Iterator[None]:
    """Greedy answers from before, during and after a test are one and the same."""
    answers: list[str] = []
    over = threading.Event()

    def sing() -> None:
        body = {"prompt": "A cough", "max_tokens": 24, "temperature": 0, "logprobs": 3, "return_token_ids": True}
        choice = ask(COMPLETIONS, body).json()["choices"][0]
        answers.append(json.dumps([choice["text"], choice["token_ids"], choice["logprobs"]["tokens"]]))

    def keep_singing() -> None:
        while not over.is_set():
            sing()

    sing()
    with ThreadPoolExecutor(1) as pool:
        singing = pool.submit(keep_singing)
        try:
            yield
        finally:
            over.set()
            singing.result()
    sing()
    assert len(answers) >= 3
    assert len(set(answers)) == 1
