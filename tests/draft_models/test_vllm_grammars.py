# SPDX-License-Identifier: Apache-2.0
"""A request's grammar has only so much of the engine's time, and no control characters within JSON."""

import threading
import time

import pytest
import torch
from vllm.v1.structured_output.backend_types import StructuredOutputGrammar

from aerie.draft_models import vllm_grammars
from aerie.draft_models.vllm_grammars import BoundedGrammar

TOKENS = 64
ALL, NONE = -1, 0


class Fake(StructuredOutputGrammar):
    """Allows no token in its masks, and takes as long as it is told."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.calls: list[str] = []
        self.released = threading.Event()

    def _work(self, name: str) -> None:
        self.calls.append(name)
        began = time.thread_time()
        while time.thread_time() - began < self.seconds and not self.released.is_set():
            pass

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        self._work("accept")
        return True

    def validate_tokens(self, tokens: list[int]) -> list[int]:
        self._work("validate")
        return tokens

    def rollback(self, num_tokens: int) -> None:
        self._work("rollback")

    def fill_bitmask(self, bitmask: torch.Tensor, batch_index: int) -> None:
        self._work("fill")
        bitmask[batch_index].fill_(NONE)

    def is_terminated(self) -> bool:
        return False

    def reset(self) -> None:
        self._work("reset")


def mask(rows: int = 1) -> torch.Tensor:
    return torch.full((rows, TOKENS // 32), 7, dtype=torch.int32)


def test_a_quick_grammar_is_passed_on() -> None:
    bitmask = mask(rows=2)
    grammar = BoundedGrammar(Fake())
    grammar.fill_bitmask(bitmask, 1)
    assert bitmask.tolist() == [[7, 7], [NONE, NONE]]
    assert grammar.accept_tokens("a", [1])
    assert grammar.validate_tokens([1, 2]) == [1, 2]


def test_a_call_without_end_is_left_behind_and_its_request_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_grammars, "LONGEST_SECONDS", 0.2)
    fake = Fake()
    grammar = BoundedGrammar(fake)
    fake.seconds = 3600.0
    bitmask = mask()
    grammar.fill_bitmask(bitmask, 0)
    assert bitmask.tolist() == [[ALL, ALL]], "the step goes on"
    assert not grammar.accept_tokens("a", [1]), "and the request does not"
    assert (grammar.validate_tokens([1]), grammar.is_terminated()) == ([], False)
    assert fake.calls == ["fill"], "the very first call"
    fake.released.set()


def test_many_slow_calls_end_a_request_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_grammars, "LONGEST_SECONDS", 0.1)
    monkeypatch.setattr(vllm_grammars, "TOKEN_SECONDS", 0.001)
    fake = Fake()
    grammar = BoundedGrammar(fake)
    fake.seconds = 0.02
    accepted = [grammar.accept_tokens("a", [1]) for _ in range(10)]
    assert accepted[0]
    assert not accepted[-1]


def test_tokens_may_take_their_time() -> None:
    fake = Fake()
    fake.seconds = 0.01
    grammar = BoundedGrammar(fake)
    assert all(grammar.accept_tokens("a", [1]) for _ in range(20))


def test_tokens_that_json_has_nowhere_are_never_allowed() -> None:
    class Anything(Fake):
        def fill_bitmask(self, bitmask: torch.Tensor, batch_index: int) -> None:
            bitmask[batch_index].fill_(ALL)

    allowed = torch.tensor([~(1 << 3), ~(1 << 1)], dtype=torch.int32)
    grammar = BoundedGrammar(Anything(), allowed)
    bitmask = mask()
    grammar.fill_bitmask(bitmask, 0)
    assert torch.equal(bitmask[0], allowed)
    assert grammar.validate_tokens([1, 2, 33, 4]) == [1, 2]
    assert grammar.validate_tokens([3]) == []
