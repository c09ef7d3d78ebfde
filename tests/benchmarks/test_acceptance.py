# SPDX-License-Identifier: Apache-2.0
import pytest

from aerie.benchmarks.acceptance.gates import check_trained_alike, figures_by_gate
from aerie.draft_models.acceptance import AcceptanceError


def test_gates_are_compared_by_mean_and_spread_over_seeds() -> None:
    figures = figures_by_gate({"elementwise": [3.0, 3.2, 3.4], "none": [3.0]})
    assert figures == {
        "acceptance_length_gated": 3.2,
        "acceptance_length_gated_seeds": 3,
        "acceptance_length_gated_std": 0.2,
        "acceptance_length_plain": 3.0,
        "acceptance_length_plain_seeds": 1,
    }


def training(**changes: object) -> dict[str, object]:
    recipe = {"head": {"gate": "none", "fc_norm": False}, "training": {"seed": 0, "epochs": 2}, "output": "a"}
    return {"arguments": {**recipe, **changes}, "inputs": {"capture": "00"}}


def test_heads_may_differ_in_gate_seed_and_place_only() -> None:
    varied = training(head={"gate": "headwise", "fc_norm": False}, training={"seed": 1, "epochs": 2}, output="b")
    check_trained_alike({"plain": training(), "headwise": varied})


@pytest.mark.parametrize(
    ("other", "fault"),
    [
        (training(training={"seed": 0, "epochs": 3}), "training"),
        (training(head={"gate": "none", "fc_norm": True}), "head"),
        ({**training(), "inputs": {"capture": "11"}}, "inputs"),
    ],
)
def test_heads_that_were_not_trained_alike_are_refused(other: dict[str, object], fault: str) -> None:
    with pytest.raises(AcceptanceError, match=f"other and first .* {fault} differ"):
        check_trained_alike({"first": training(), "other": other})
