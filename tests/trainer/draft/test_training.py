# SPDX-License-Identifier: Apache-2.0
"""Whole trainings on a tiny target: from prompts to a checkpoint, resumed, repeated, compared."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from aerie.draft_models.checkpoint import read_draft, verify_draft
from aerie.draft_models.contract import GateKind
from aerie.draft_models.modeling import Eagle3Head
from aerie.trainer.draft.capture import layer_ids
from aerie.trainer.draft.data import Captured
from aerie.trainer.draft.evaluate import evaluate, walk
from aerie.trainer.draft.initial import GATE
from aerie.trainer.draft.loop import TrainingError, train
from aerie.trainer.draft.phases import schedule
from aerie.trainer.draft.prepared import Prepared
from aerie.trainer.draft.prompts import load_prompts
from aerie.trainer.draft.recipe import DraftRecipe, Head, JsonlPrompts, Training
from aerie.trainer.draft.regenerate import read_answers
from aerie.trainer.draft.run import run, run_recipe
from aerie.trainer.draft.target import load_target
from aerie.trainer.recipe import RecipeError

Weights = dict[str, Tensor]
Run = Callable[..., Weights]
STEPS, DECAY, ROWS = 3, 0.8, 64


@pytest.fixture(scope="module")
def ready(recipe: DraftRecipe) -> Prepared:
    return Prepared.of(recipe)


def _head(ready: Prepared, gate: GateKind, seed: int = 0) -> Eagle3Head:
    return ready.head(Head(gate=gate, draft_vocab_size=96), seed, Path())


@pytest.fixture
def run_training(recipe: DraftRecipe, ready: Prepared) -> Run:
    """Train a head with the recipe's settings, changed; returns its weights."""

    def run(head: Eagle3Head, checkpoint: Path, stop_after: int | None = None, **changes: object) -> Weights:
        training = Training.model_validate(recipe.training.model_dump() | changes)
        state = train(head, ready.teacher, ready.data, ready.validation, training, checkpoint, stop_after)
        return state.head.state_dict()

    return run


def _same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_from_prompts_to_a_served_checkpoint(recipe: DraftRecipe, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    # JSON is YAML.
    path.write_text(json.dumps(recipe.model_dump(mode="json") | {"output": str(tmp_path / "draft")}))
    output = run(path)
    assert verify_draft(output, recipe.target) == ()
    config, tensors = read_draft(output)
    assert config.gate == "elementwise"
    assert config.aux_hidden_state_layer_ids == (2, 3, 4)
    assert tensors["lm_head.weight"].dtype == torch.bfloat16
    record = json.loads((output / "provenance.json").read_text())
    assert record["arguments"]["training"]["epochs"] == 2
    assert "model.safetensors" in record["inputs"]
    assert [entry["epoch"] for entry in record["curve"]] == [0, 1]
    assert record["data"]["documents"] == 14
    assert (record["data"]["left_out_as_too_long"], record["data"]["left_out_as_too_short"]) == (0, 0)


def test_trainings_share_captured_data(recipe: DraftRecipe, tmp_path: Path) -> None:
    made = {path.name for path in recipe.work.glob("c*")}
    plain = recipe.model_copy(update={"head": Head(gate="none", draft_vocab_size=96), "output": tmp_path / "plain"})
    config, _ = read_draft(run_recipe(plain))
    assert config.gate == "none"
    assert made
    assert {path.name for path in recipe.work.glob("c*")} == made


def test_resuming_is_bit_identical(ready: Prepared, run_training: Run, tmp_path: Path) -> None:
    whole = run_training(_head(ready, "elementwise"), tmp_path / "whole.pt")
    run_training(_head(ready, "elementwise"), tmp_path / "cut.pt", stop_after=7, checkpoint_every=5)
    saved = torch.load(tmp_path / "cut.pt", weights_only=True)
    assert saved["progress"]["update"] == 5
    resumed = run_training(_head(ready, "elementwise"), tmp_path / "cut.pt", checkpoint_every=5)
    assert _same(whole, resumed)
    last = [torch.load(tmp_path / name, weights_only=True)["progress"]["history"] for name in ("whole.pt", "cut.pt")]
    assert last[0] == last[1]


def test_a_seed_decides_everything(ready: Prepared, run_training: Run, tmp_path: Path) -> None:
    first, again, other = (
        run_training(_head(ready, "none", seed), tmp_path / f"{name}.pt", seed=seed)
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert _same(first, again)
    assert not _same(first, other)


@pytest.mark.parametrize("gate", ["elementwise", "headwise"])
def test_a_gated_head_starts_as_a_plain_one(ready: Prepared, run_training: Run, gate: GateKind, tmp_path: Path) -> None:
    gated, plain = _head(ready, gate), _head(ready, "none")
    measured = [evaluate(head, ready.teacher, ready.validation, STEPS, DECAY, ROWS) for head in (gated, plain)]
    assert measured[0] == measured[1]
    # And with a gate that hardly moves it trains like one, but for the share of the gradient's norm.
    ways = [
        run_training(head, tmp_path / f"{head.config.gate}.pt", gate_learning_rate=1e-12, clip=1e9, epochs=1)
        for head in (gated, plain)
    ]
    assert ways[0][GATE].abs().max() < 1e-9
    torch.testing.assert_close(ways[0]["fc.weight"], ways[1]["fc.weight"], atol=2e-3, rtol=0)


def test_it_learns(ready: Prepared, run_training: Run, tmp_path: Path) -> None:
    head = _head(ready, "elementwise")
    before = evaluate(head, ready.teacher, ready.data, STEPS, DECAY, ROWS)
    run_training(head, tmp_path / "learn.pt", epochs=12, keep="last")
    after = evaluate(head, ready.teacher, ready.data, STEPS, DECAY, ROWS)
    assert after.loss < 0.9 * before.loss
    assert after.accuracy_S[0] > before.accuracy_S[0] + 0.1


def test_bfloat16_products_learn_the_same(ready: Prepared, run_training: Run, tmp_path: Path) -> None:
    lengths = []
    for precision in ("float32", "bfloat16"):
        head = _head(ready, "elementwise")
        run_training(head, tmp_path / f"{precision}.pt", precision=precision)
        assert head.fc.weight.dtype == torch.float32
        lengths.append(evaluate(head, ready.teacher, ready.data, STEPS, DECAY, ROWS).loss)
    assert lengths[1] == pytest.approx(lengths[0], rel=0.02)


def test_a_loss_that_is_not_a_number_stops_the_training(ready: Prepared, run_training: Run, tmp_path: Path) -> None:
    head = _head(ready, "none")
    with torch.no_grad():
        head.fc.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="learning_rate"):
        run_training(head, tmp_path / "nan.pt")


def test_captured_states_are_the_targets(ready: Prepared, recipe: DraftRecipe) -> None:
    assert isinstance(ready.data, Captured)
    model = load_target(recipe.target)
    answers = next(recipe.work.glob("answers-*/answers.jsonl"))
    known = {
        tuple(one.prompt_ids + one.answer_ids)
        for path in answers.parent.parent.glob("answers-*/*.jsonl")
        for one in read_answers(path)
    }
    for document in ready.data._documents:
        ids = document.token_ids.long()
        assert tuple(ids.tolist()) in known
        with torch.inference_mode():
            output = model(ids[None], output_hidden_states=True)
        expected = torch.stack([output.hidden_states[layer][0] for layer in (2, 3, 4)], dim=1)
        torch.testing.assert_close(document.hidden_states[:, :-1].float(), expected, atol=2e-2, rtol=1e-2)
        logits = ready.teacher.logits(document.hidden_states[:, -1].float())
        torch.testing.assert_close(logits, output.logits[0], atol=0.1, rtol=2e-2)
        assert document.choices.tolist() == output.logits[0].argmax(-1).tolist()


def test_greedy_answers_are_the_targets_choices(ready: Prepared) -> None:
    for document in ready.validation._documents:
        answer = torch.nonzero(document.supervised).flatten()
        assert document.token_ids[answer].tolist() == document.choices[answer - 1].tolist()


def test_the_engines_walk() -> None:
    # Row 0 accepts 2 drafts, so the next step is at row 3; it accepts none, the next is at row 4.
    assert walk([2, 9, 9, 0, 1, 9], 6) == [2, 0, 1]


def test_simulated_acceptance_adds_up(ready: Prepared) -> None:
    acceptance = evaluate(_head(ready, "none"), ready.teacher, ready.validation, STEPS, DECAY, ROWS)
    assert acceptance.length_K[-1] == pytest.approx(1 + sum(acceptance.accepted_at_S))
    assert acceptance.length_K == sorted(acceptance.length_K)


def test_the_schedule_rises_and_falls() -> None:
    rates = [schedule(update, 100, 0.1) for update in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001


@pytest.mark.parametrize(
    ("ids", "layers"), [((2, 2, 3), 7), ((3, 2), 7), ((1, 7), 7), (None, 2)], ids=["twice", "order", "range", "shallow"]
)
def test_aux_layers_that_would_collapse_are_refused(ids: tuple[int, ...] | None, layers: int) -> None:
    with pytest.raises(RecipeError, match="aux_hidden_state_layer_ids"):
        layer_ids(ids, layers)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{target: t, output: o, work: w, training: {epochs: 0}}", "training.epochs"),
        ("{target: t, output: o, work: w, tarining: {}}", r"tarining: is no option; did you mean training\?"),
        ("{target: t, output: o, work: w, training: {epohcs: 1}}", r"training\.epohcs: .* did you mean epochs\?"),
        ("{target: t", "recipe"),
        ("{target: t, output: o}", "work"),
    ],
)
def test_a_bad_recipe_names_the_option(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=named):
        DraftRecipe.read(path)


@pytest.mark.parametrize(
    "line", ["{", "{}", '{"messages": []}', '{"messages": [{"role": "assistant", "content": "x"}]}']
)
def test_a_bad_chat_names_its_line(recipe: DraftRecipe, tmp_path: Path, line: str) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(RecipeError, match=r"chats\.jsonl, line 1"):
        load_prompts(JsonlPrompts(path=path))
