# SPDX-License-Identifier: Apache-2.0
"""Bring a server to the memory that it keeps, so that what it holds afterwards can be asked whether it grows.

On a CPU, oneDNN compiles a matrix product for each number of rows and each layer's shape that it meets, of some 0.4 MiB
each, and keeps the last 128 as we serve (`server/environment.py`). The draft and the lm_head are such layers, and the
rows are the tokens of a step: almost every new prompt adds some, until the cache is full. So: prompts of all lengths up
to one that fills it. The KV cache needs nothing, vLLM writes it whole when it makes it.
"""

import random

import httpx

from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.serving.processes import Server

LONGEST = 320
"""Tokens. Six shapes of layers or so meet each length: 320 of them are most of 2,000 products, more than are kept."""
TOKENS = range(16, 256)
"""Any vocabulary has these."""
TIMEOUT_S = 300.0


def fill_caches(server: Server, model: str, rng: random.Random) -> None:
    """One prompt of each length, one at a time: two together would be one number of rows."""
    with httpx.Client(base_url=server.url, timeout=TIMEOUT_S, trust_env=False) as http:
        for length in rng.sample(range(2, LONGEST), LONGEST - 2):
            # Random, so that the prefix cache leaves all of it to be computed.
            prompt = rng.choices(TOKENS, k=length)
            answer = http.post("/v1/completions", json={"model": model, "prompt": prompt, "max_tokens": 1})
            if answer.status_code != 200:
                raise BenchmarkError(f"the warm-up was refused: {answer.status_code} {answer.text[:300]}")
