# SPDX-License-Identifier: Apache-2.0
"""The regression gate, on the shipped demo: it passes, trips on a head whose gate is zeroed, and passes again."""

from typing import Any

import pytest
import torch

from aerie.benchmarks.options import DEMO_DRAFT, DEMO_MODEL
from aerie.benchmarks.regression.floors import COMMITTED, Floors
from aerie.benchmarks.regression.measure import acceptance, engine_options, measure
from aerie.draft_models.offline import offline_engine

PLANTED = ("inquiry", "advice")
"""The domains that are measured again: their prompts are the shortest."""

pytestmark = pytest.mark.engine


def zero_gate(worker: Any) -> Any:  # noqa: ANN401 - vLLM's
    """As if g_proj's weight were zero, whichever form vLLM packed it into; returns what restores it."""
    modules = worker.model_runner.drafter.model.named_modules()
    (gate,) = (module for name, module in modules if name.endswith("g_proj"))
    return gate.register_forward_hook(lambda _module, _inputs, output: torch.zeros_like(output))


def test_the_demo_is_above_its_floors_and_a_head_without_its_gate_is_not() -> None:
    floors = Floors.read(COMMITTED)
    with offline_engine(engine_options(DEMO_MODEL, DEMO_DRAFT, floors.asked)) as engine:
        measured = measure(engine, DEMO_MODEL, floors.asked)
        assert floors.faults(measured) == []

        hook = engine.in_worker(zero_gate)
        planted = acceptance(engine, DEMO_MODEL, floors.asked, PLANTED)
        faults = floors.faults(measured | planted)
        names = ["acceptance_length", *(f"acceptance_length_{domain}" for domain in PLANTED)]
        assert [fault.split(" is ")[0] for fault in faults] == names
        # The main model decides what is said, whatever is drafted.
        assert planted["parse_rate"] == 1

        hook.remove()
        restored = acceptance(engine, DEMO_MODEL, floors.asked, PLANTED)
        del restored["acceptance_length"]  # of two domains; the floor is that of all
        assert floors.faults(measured | restored) == []
