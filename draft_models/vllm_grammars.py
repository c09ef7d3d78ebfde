# SPDX-License-Identifier: Apache-2.0
"""vLLM's xgrammar backend with a limit on the time that matching a grammar takes from everybody else.

Matching runs in the engine core's only loop. xgrammar releases the GIL meanwhile, so each call runs in a thread that
the loop stops waiting for; the request is then ended with an error, as vLLM ends one whose tokens its grammar rejects.
Besides, no token with a raw control character is allowed within JSON: where a length is bounded, xgrammar 0.2.8 takes
them for characters of a string, which no JSON parser does (its issue 800).

Read in vllm 0.32.0 and 0.33.0.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from typing import TYPE_CHECKING, TypeVar

import torch
from vllm.v1.structured_output.backend_types import StructuredOutputGrammar, StructuredOutputOptions
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

if TYPE_CHECKING:
    from vllm.v1.structured_output import StructuredOutputManager

LONGEST_SECONDS = 1.0
"""Most CPU time of a call, and of all calls of a request beyond what each of its tokens may take."""
TOKEN_SECONDS = 0.05
JSON = frozenset({StructuredOutputOptions.JSON, StructuredOutputOptions.JSON_OBJECT})
CONTROL = frozenset(range(0x20)) - {0x0A, 0x0D}
"""Bytes that JSON has nowhere, but line ends and tabs between its parts; a grammar of JSON can do without tabs."""
BITS = 32
log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class BoundedGrammar(StructuredOutputGrammar):
    """A request's grammar; once its time is over it accepts no token."""

    def __init__(self, grammar: StructuredOutputGrammar, allowed: torch.Tensor | None = None) -> None:
        """`allowed` is a mask, bit by bit as xgrammar's, of tokens that may be used at all."""
        self._grammar = grammar
        self._allowed = allowed
        self._thread: ThreadPoolExecutor | None = None
        self._over = False
        self._spent = 0.0

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        """Advance; `False` ends the request."""
        accepted = self._bounded(lambda: self._grammar.accept_tokens(request_id, tokens), otherwise=False)
        self._spent = max(0.0, self._spent - TOKEN_SECONDS * len(tokens))
        return accepted

    def validate_tokens(self, tokens: list[int]) -> list[int]:
        """The drafted tokens that may follow."""
        if self._allowed is not None:
            unwanted = (index for index, token in enumerate(tokens) if not self._allows(token))
            tokens = tokens[: next(unwanted, len(tokens))]
        return self._bounded(lambda: self._grammar.validate_tokens(tokens), otherwise=[])

    def rollback(self, num_tokens: int) -> None:
        """Go back."""
        self._bounded(lambda: self._grammar.rollback(num_tokens), otherwise=None)

    def fill_bitmask(self, bitmask: torch.Tensor, batch_index: int) -> None:
        """Write the mask of the next token; every token, once the time is over."""
        # A thread that is no longer waited for must not write what others read.
        row = bitmask[batch_index : batch_index + 1].clone()
        if self._bounded(lambda: self._filled(row), otherwise=False):
            bitmask[batch_index] = row[0] if self._allowed is None else row[0] & self._allowed
        else:
            bitmask[batch_index].fill_(-1)

    def is_terminated(self) -> bool:
        """Whether the text is complete."""
        return not self._over and self._grammar.is_terminated()

    def reset(self) -> None:
        """Start again."""
        self._bounded(self._grammar.reset, otherwise=None)

    def _allows(self, token: int) -> bool:
        assert self._allowed is not None
        return bool(self._allowed[token // BITS] >> (token % BITS) & 1)

    def _filled(self, row: torch.Tensor) -> bool:
        self._grammar.fill_bitmask(row, 0)
        return True

    def _bounded(self, call: Callable[[], Answer], otherwise: Answer) -> Answer:
        """What `call` returns, or `otherwise` when the request's time is over, by this call or an earlier one."""
        if self._over:
            return otherwise
        # From the first call on: what is ambiguous behind a literal is slow all at once.
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        timed = _within(LONGEST_SECONDS, self._thread, call)
        if timed is None:
            self._stop()
            return otherwise
        answer, seconds = timed
        self._spent += seconds
        if self._spent > LONGEST_SECONDS:
            self._stop()
            return otherwise
        return answer

    def _stop(self) -> None:
        log.warning("matching a grammar takes too long; its request ends")
        self._over = True
        if self._thread is not None:
            self._thread.shutdown(wait=False)


def _timed(call: Callable[[], Answer]) -> tuple[Answer, float]:
    """An answer, and the CPU seconds of this thread that it took: other processes' are not the grammar's fault."""
    began = time.thread_time()
    return call(), time.thread_time() - began


def _within(seconds: float, thread: ThreadPoolExecutor, call: Callable[[], Answer]) -> tuple[Answer, float] | None:
    """The same from a thread, or `None` once that has used so much CPU time for it."""
    clocks: list[tuple[int, float]] = []

    def work() -> tuple[Answer, float]:
        clocks.append((time.pthread_getcpuclockid(threading.get_ident()), time.thread_time()))
        return _timed(call)

    future = thread.submit(work)
    while True:
        try:
            return future.result(timeout=seconds / 4)
        except Late:
            for clock, began in clocks:
                if time.clock_gettime(clock) - began >= seconds:
                    return None


class BoundedXgrammar(XgrammarBackend):
    """vLLM's, whose grammars are bounded."""

    def __post_init__(self) -> None:
        """Find the tokens that JSON can do without."""
        super().__post_init__()  # type: ignore[no-untyped-call]  # vLLM's has no annotations
        vocabulary = self.compiler.compile_regex("a").tokenizer_info.decoded_vocab
        bits = torch.zeros(-(-self.vocab_size // BITS) * BITS, dtype=torch.bool)
        bits[: self.vocab_size] = True
        for token, text in enumerate(vocabulary):
            if not CONTROL.isdisjoint(text):
                bits[token] = False
        weights = torch.tensor([1 << bit for bit in range(BITS - 1)] + [-(1 << (BITS - 1))], dtype=torch.int64)
        self._json = (bits.view(-1, BITS) * weights).sum(1).to(torch.int32)

    def compile_grammar(
        self,
        request_type: StructuredOutputOptions,
        grammar_spec: str,
        stop_token_ids: set[int] | None = None,
    ) -> StructuredOutputGrammar:
        """Compile as vLLM does. `stop_token_ids` end the text."""
        grammar = super().compile_grammar(request_type, grammar_spec, stop_token_ids=stop_token_ids)
        return BoundedGrammar(grammar, self._json if request_type in JSON else None)


def bound_grammars(manager: "StructuredOutputManager") -> None:
    """Have a manager use the bounded backend, before it makes one of its own with its first request."""
    config = manager.vllm_config
    if manager.backend is None and config.structured_outputs_config.backend == "xgrammar":
        size = config.model_config.get_vocab_size()
        manager.backend = BoundedXgrammar(config, tokenizer=manager.tokenizer, vocab_size=size)
