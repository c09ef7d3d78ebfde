# SPDX-License-Identifier: Apache-2.0
"""One grammar, compiled and matched on trial: whether it can end, and what a step of matching costs.

Read against xgrammar 0.2.8. Its Earley matcher keeps a state for every way to read the text so far, and looks at many
tokens from each: `([^x]{0,10}x?){0,100}` costs seconds per token. How ambiguous a grammar is shows when it is walked.
"""

import json
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xgrammar import (
    CompiledGrammar,
    Grammar,
    GrammarCompiler,
    GrammarMatcher,
    StructuralTagItem,
    TokenizerInfo,
    allocate_token_bitmask,
)

from aerie.server.grammars.productive import endless_rule
from aerie.server.grammars.verdict import Kind, Verdict

SLOW_STEP_SECONDS = 0.1
"""CPU time of a step, mask and token together, beyond which a grammar is refused. Others wait for it."""
WALKS, STEPS = 6, 32
WALK_SECONDS = 2.0
"""CPU time for all walks; what has shown nothing by then is fine."""
Masks = NDArray[np.bool_]


def judge(kind: Kind, text: str, tokens: TokenizerInfo, *, whitespace: bool) -> Verdict:
    """Compile and walk a grammar. Takes as long as it takes: call it where a limit can end it.

    `whitespace` is whether JSON may have any between its parts.
    """
    try:
        grammar = _parsed(kind, text, whitespace=whitespace)
    except Exception as error:  # of many types, none of them documented
        return Verdict("unparsable", str(error))
    if (rule := endless_rule(str(grammar))) is not None:
        return Verdict("endless", rule)
    try:
        compiled = GrammarCompiler(tokens, max_threads=1, cache_enabled=False).compile_grammar(grammar)
    except Exception as error:
        return Verdict("uncompilable", str(error))
    seconds = slowest_step(compiled)
    return Verdict("slow", f"{seconds:.1f}") if seconds > SLOW_STEP_SECONDS else Verdict("fine")


def _parsed(kind: Kind, text: str, *, whitespace: bool) -> Grammar:
    """As vLLM's `XgrammarBackend.compile_grammar` has it."""
    if kind == "json":
        return Grammar.from_json_schema(text, any_whitespace=whitespace, separators=None if whitespace else (",", ":"))
    parsers: dict[str, Callable[[Any], Grammar]] = {
        "regex": Grammar.from_regex,
        "ebnf": Grammar.from_ebnf,
        "lark": Grammar.from_lark,
        "tag": _tag,
    }
    return parsers[kind](text)


def _tag(text: str) -> Grammar:
    """A structural tag, of today's form or of the one before, with `structures`."""
    tag = json.loads(text)
    if "structures" not in tag:
        return Grammar.from_structural_tag(text)
    items = [
        StructuralTagItem(begin=item["begin"], schema=json.dumps(item["schema"]), end=item["end"])
        for item in tag["structures"]
    ]
    return Grammar.from_structural_tag(items, tag["triggers"])


def slowest_step(compiled: CompiledGrammar) -> float:
    """CPU seconds of the slowest step on some walks through a grammar; ends at the first that is too slow.

    A step is measured twice and the faster time taken, so that no page fault makes a grammar slow.
    """
    sizes = np.array([len(token) for token in compiled.tokenizer_info.decoded_vocab])
    chance = random.Random(0)
    slowest = 0.0
    end = time.process_time() + WALK_SECONDS
    for walk in range(WALKS):
        matcher = GrammarMatcher(compiled)
        last: int | None = None
        for _ in range(STEPS):
            seconds, allowed = _step(matcher, len(sizes))
            slowest = max(slowest, seconds)
            allowed[matcher.stop_token_ids] = False
            if slowest > SLOW_STEP_SECONDS or time.process_time() > end:
                return slowest
            if not allowed.any():
                break
            last = _next(walk, allowed, last, sizes, chance)
            began = time.process_time()
            matcher.accept_token(last)
            slowest = max(slowest, time.process_time() - began)
    return slowest


def _step(matcher: GrammarMatcher, size: int) -> tuple[float, Masks]:
    """CPU seconds of filling a mask, and which tokens it allows."""
    mask = allocate_token_bitmask(1, size)
    seconds = float("inf")
    for _ in range(2):
        began = time.process_time()
        matcher.fill_next_token_bitmask(mask)
        seconds = min(seconds, time.process_time() - began)
        if seconds <= SLOW_STEP_SECONDS:
            break
    bits = np.unpackbits(mask.numpy().view(np.uint8), bitorder="little")
    return seconds, bits[:size].astype(bool)


def _next(walk: int, allowed: Masks, last: int | None, sizes: NDArray[np.int_], chance: random.Random) -> int:
    """The next token of a walk: the same again, the longest, the first, or any."""
    if walk == 0 and last is not None and allowed[last]:
        return last
    if walk == 1:
        return int(np.argmax(np.where(allowed, sizes, -1)))
    tokens = np.flatnonzero(allowed)
    return int(tokens[0] if walk == 2 else tokens[chance.randrange(len(tokens))])
