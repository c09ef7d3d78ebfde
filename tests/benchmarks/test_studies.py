# SPDX-License-Identifier: Apache-2.0
"""Figures of the studies, from made-up lengths; and that heads differ in what is compared only."""

from pathlib import Path

import pytest

from aerie.artefacts import REPOSITORY
from aerie.benchmarks.quality import generic, int4
from aerie.benchmarks.study import gates, rates
from aerie.trainer.draft.recipe import DraftRecipe
from aerie.trainer.quantise import Recipe

RECIPE = DraftRecipe.read(REPOSITORY / "trainer/recipes/clinic-gate-study.yaml")


def test_gains_are_paired_by_seed() -> None:
    found = gates.figures({"plain": [2.0, 4.0], "elementwise": [2.2, 4.8], "plain_k7": [1.0, 1.0]})
    assert found["tau_plain"] == 3.0
    assert found["gain_elementwise"] == pytest.approx(0.15)
    assert found["gain_elementwise_std"] == pytest.approx(0.0707, abs=1e-4)
    assert "gain_plain" not in found


def test_heads_of_the_gate_study_differ_in_gate_norms_seed_and_gate_rate() -> None:
    made = gates.heads(RECIPE, seeds=2, work=Path("work"))
    assert len(made) == 12
    shared = {
        one.model_copy(
            update={
                "output": Path(),
                "head": one.head.model_copy(update={"gate": "none", "fc_norm": False, "norm_output": False}),
                "training": one.training.model_copy(update={"seed": 0, "gate_learning_rate": 1.0}),
            }
        ).model_dump_json()
        for one in made.values()
    }
    assert len(shared) == 1
    assert {one.training.gate_learning_rate for (gate, _, _), one in made.items() if gate == "elementwise"} == {4.0}


def test_rates_compare_each_kind_at_its_best() -> None:
    lengths = dict.fromkeys(rates.POINTS, 2.0)
    lengths["none", 4e-3, 1.0] = 2.5
    lengths["elementwise", 2e-3, 4.0] = 3.0
    found = rates.figures(lengths)
    assert found["gain_elementwise"] == pytest.approx(0.2)
    assert found["gain_elementwise_gate_1"] == pytest.approx(2.0 / 2.5 - 1)
    # Factor 16 was tried at the lower rate only, where plain had 2.0.
    assert found["gain_elementwise_gate_16"] == pytest.approx(0.0)
    assert found["tau_headwise_lr_4_gate_4"] == 2.0


def test_int4_figures_name_rounding_and_the_best() -> None:
    made = dict(int4.variants(Recipe()))
    assert len(made) == 12
    assert made["awq_g128_asym"].method == "awq"
    measured = {name: {"ppl_loss": 0.04, "kl": 0.1} for name in made}
    measured["rtn_g128_sym"] = {"ppl_loss": 0.08, "kl": 0.2}
    measured["autoround_g128_sym"] = {"ppl_loss": 0.01, "kl": 0.05}
    measured["autoround_g128_asym"] = {"ppl_loss": 0.001, "kl": 0.05}
    found = int4.figures("dense", measured)
    assert found["ppl_loss_rtn"] == 0.08
    assert found["ppl_loss_best"] == 0.01
    assert found["dense_autoround_g128_asym_ppl_loss"] == 0.001
    assert "ppl_loss_generic" not in found


def test_int4_figures_set_self_generated_text_against_generic() -> None:
    measured = {name: {"ppl_loss": 0.04} for name in dict(int4.variants(Recipe()))}
    measured["awq_g128_sym"] = {"ppl_loss": 0.02}
    measured |= {"generic_awq_g128_sym": {"ppl_loss": 0.03}, "generic_autoround_g128_sym": {"ppl_loss": 0.05}}
    found = int4.figures("moe", measured)
    assert (found["ppl_loss_moe_self"], found["ppl_loss_moe_generic"]) == (0.02, 0.03)


def test_generic_text_is_whole_paragraphs_drawn_once() -> None:
    texts = generic.documents(64)
    assert texts == generic.documents(64)
    assert len(set(texts)) == 64
    assert min(map(len, texts)) > generic.CHARACTERS // 2
