# SPDX-License-Identifier: Apache-2.0
"""What a training can be told: accumulation, phases, the best epoch, frozen rows, low-rank deltas, warm starts."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from aerie.draft_models.checkpoint import read_draft
from aerie.draft_models.contract import GateKind
from aerie.draft_models.modeling import Eagle3Head
from aerie.trainer.draft import lora
from aerie.trainer.draft.data import Source
from aerie.trainer.draft.evaluate import evaluate
from aerie.trainer.draft.initial import GATE, OUTPUT, warm_start
from aerie.trainer.draft.loop import State, Trainer, train, waited_long_enough
from aerie.trainer.draft.parallel import Processes
from aerie.trainer.draft.phases import Phase, phases_of
from aerie.trainer.draft.prepared import Prepared
from aerie.trainer.draft.recipe import DraftRecipe, Head, LowRank, OnPolicy, Training
from aerie.trainer.draft.run import run_recipe
from aerie.trainer.recipe import RecipeError

STEPS, DECAY, ROWS = 3, 0.8, 64


@pytest.fixture(scope="module")
def ready(recipe: DraftRecipe) -> Prepared:
    return Prepared.of(recipe)


def _head(ready: Prepared, gate: GateKind) -> Eagle3Head:
    return ready.head(Head(gate=gate, draft_vocab_size=96), 0, Path())


@pytest.fixture
def settings(recipe: DraftRecipe) -> Training:
    return recipe.training


def _train(ready: Prepared, head: Eagle3Head, path: Path, settings: Training, **changes: object) -> State:
    training = Training.model_validate(settings.model_dump() | changes)
    return train(head, ready.teacher, ready.data, ready.validation, training, path)


def _length(head: Eagle3Head, ready: Prepared, data: Source) -> float:
    return evaluate(head, ready.teacher, data, STEPS, DECAY, 2 * ROWS).length_K[-1]


def test_batches_of_an_update_are_one_large_batch(ready: Prepared, settings: Training, tmp_path: Path) -> None:
    weights = []
    for documents in ([[0, 1], [2], [3, 4]], [[0, 1, 2, 3, 4]]):
        head = _head(ready, "elementwise")
        trainer = Trainer(head, ready.teacher, settings, tmp_path / "x.pt", Processes(1, "none"))
        trainer.update(Phase("supervised", 1e-3, []), ready.data, documents, 1e-3)
        weights.append(head.state_dict())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], atol=3e-5, rtol=1e-4)


def test_accumulated_batches_make_fewer_updates(ready: Prepared, settings: Training) -> None:
    single, triple = (phases_of(settings.model_copy(update={"accumulate": size}), ready.data)[0] for size in (1, 3))
    assert triple.updates == sum(-(-len(epoch) // 3) for epoch in single.plans)
    flat = [[batch for update in epoch for batch in update] for phase in (single, triple) for epoch in phase.plans]
    assert flat[: len(single.plans)] == flat[len(single.plans) :]


def test_the_best_epoch_is_exported(ready: Prepared, settings: Training, tmp_path: Path) -> None:
    state = _train(ready, _head(ready, "elementwise"), tmp_path / "best.pt", settings, epochs=5, learning_rate=3e-2)
    lengths = [entry["length_K"][-1] for entry in state.history]
    assert _length(state.head, ready, ready.validation) == max(lengths)
    last = _train(
        ready, _head(ready, "elementwise"), tmp_path / "last.pt", settings, epochs=5, learning_rate=3e-2, keep="last"
    )
    assert _length(last.head, ready, ready.validation) == lengths[-1]


def test_patience_ends_a_phase() -> None:
    def history(*lengths: float) -> list[dict[str, object]]:
        return [{"phase": "supervised", "length_K": [1.0, length]} for length in lengths]

    assert not waited_long_enough(history(2.0, 1.9), "supervised", 2)
    assert waited_long_enough(history(2.0, 1.9, 2.0), "supervised", 2)
    assert not waited_long_enough(history(2.0, 1.9, 2.1), "supervised", 2)
    assert not waited_long_enough(history(2.0, 1.0, 1.0, 1.0), "supervised", None)
    assert not waited_long_enough(history(2.0, 1.0, 1.0), "on_policy", 1)


def test_patience_stops_a_training(ready: Prepared, settings: Training, tmp_path: Path) -> None:
    # A learning rate of nothing: no epoch is better than the first.
    state = _train(ready, _head(ready, "none"), tmp_path / "p.pt", settings, epochs=9, learning_rate=1e-12, patience=2)
    assert len(state.history) == 3


def test_the_on_policy_phase_follows(ready: Prepared, settings: Training, tmp_path: Path) -> None:
    policy = OnPolicy(epochs=2, learning_rate=1e-3)
    state = _train(ready, _head(ready, "elementwise"), tmp_path / "policy.pt", settings, on_policy=policy)
    assert [entry["phase"] for entry in state.history] == ["supervised"] * 2 + ["on_policy"] * 2
    # Fewer states count than all, and their weights do not decay: the sums are not those of the first phase.
    assert state.history[2]["training_loss"] != pytest.approx(state.history[1]["training_loss"], rel=0.01)


def test_frozen_output_rows_stay_the_targets(ready: Prepared, settings: Training, tmp_path: Path) -> None:
    head = _head(ready, "elementwise")
    rows, fc = head.lm_head.weight.detach().clone(), head.fc.weight.detach().clone()
    state = _train(ready, head, tmp_path / "frozen.pt", settings, train_lm_head=False)
    assert torch.equal(state.head.lm_head.weight, rows)
    assert not torch.equal(state.head.fc.weight, fc)


@pytest.mark.parametrize("loss", ["tv", "lk", "lk_hybrid"])
def test_every_loss_learns(ready: Prepared, settings: Training, tmp_path: Path, loss: str) -> None:
    before = evaluate(_head(ready, "elementwise"), ready.teacher, ready.data, STEPS, DECAY, ROWS).accuracy_S[0]
    state = _train(ready, _head(ready, "elementwise"), tmp_path / "x.pt", settings, loss=loss, epochs=10, keep="last")
    assert evaluate(state.head, ready.teacher, ready.data, STEPS, DECAY, ROWS).accuracy_S[0] > before + 0.05


def test_low_rank_deltas_start_at_nothing_and_end_in_the_weights(
    ready: Prepared, settings: Training, tmp_path: Path
) -> None:
    head = _head(ready, "elementwise")
    names = set(head.state_dict())
    base = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    before = _length(head, ready, ready.data)
    lora.add(head, LowRank(rank=2), seed=0)
    assert _length(lora.merged(head), ready, ready.data) == before
    fresh = _head(ready, "elementwise")
    state = _train(ready, fresh, tmp_path / "lora.pt", settings, lora=LowRank(rank=2), epochs=4, keep="last")
    assert set(state.head.state_dict()) == names
    moved = state.head.fc.weight - base["fc.weight"]
    assert moved.abs().max() > 0
    assert torch.linalg.matrix_rank(moved, atol=1e-5) <= 2
    assert torch.equal(state.head.norm.weight, base["norm.weight"])
    assert torch.equal(state.head.lm_head.weight, base["lm_head.weight"])


def test_low_rank_trainings_resume_bit_identically(ready: Prepared, settings: Training, tmp_path: Path) -> None:
    changed = settings.model_copy(update={"lora": LowRank(rank=2), "checkpoint_every": 5})
    whole = train(_head(ready, "none"), ready.teacher, ready.data, ready.validation, changed, tmp_path / "whole.pt")
    for stop in (7, None):
        arguments = (_head(ready, "none"), ready.teacher, ready.data, ready.validation, changed, tmp_path / "cut.pt")
        resumed = train(*arguments, stop_after=stop)
    assert _same(whole.head.state_dict(), resumed.head.state_dict())


def _same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def plain(recipe: DraftRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("plain") / "draft"
    head = Head(gate="none", draft_vocab_size=64)
    return run_recipe(recipe.model_copy(update={"head": head, "output": output, "weights": "float32"}))


def test_a_plain_head_starts_a_gated_one(ready: Prepared, plain: Path, target: Path) -> None:
    _, trained = read_draft(plain)
    gated = _head(ready, "elementwise")
    untrained = gated.lm_head.weight.detach().clone()
    warm_start(gated, plain, target)
    assert torch.equal(gated.fc.weight, trained["fc.weight"])
    assert torch.equal(gated.state_dict()[OUTPUT], 2 * trained[OUTPUT])
    assert not gated.state_dict()[GATE].any()
    # 64 of its 96 tokens were drafted before; the others start from the target's rows.
    ids, before = gated.target_ids_V.tolist(), (torch.arange(64) + trained["d2t"]).tolist()
    for row, token in enumerate(ids):
        expected = trained["lm_head.weight"][before.index(token)] if token in before else untrained[row]
        assert torch.equal(gated.lm_head.weight[row], expected)
    same = _head(ready, "none")
    warm_start(same, plain, target)
    measured = [evaluate(head, ready.teacher, ready.validation, STEPS, DECAY, ROWS) for head in (gated, same)]
    assert measured[0].length_K == measured[1].length_K


def test_a_start_of_another_shape_is_refused(ready: Prepared, plain: Path, recipe: DraftRecipe, tmp_path: Path) -> None:
    head = recipe.model_copy(update={"head": Head(gate="none", draft_vocab_size=64, fc_norm=True, start=plain)})
    with pytest.raises(RecipeError, match=r"head\.start.*fc_norm is False, here True"):
        run_recipe(head.model_copy(update={"output": tmp_path / "x"}))
    gated = recipe.model_copy(update={"output": tmp_path / "gated", "head": Head(draft_vocab_size=64)})
    with pytest.raises(RecipeError, match=r"head\.start.*elementwise gate"):
        warm_start(_head(ready, "headwise"), run_recipe(gated), recipe.target)
    with pytest.raises(RecipeError, match=r"head\.start.*config\.json"):
        warm_start(_head(ready, "none"), tmp_path / "nowhere", recipe.target)


def test_a_head_of_another_maker_starts_one(ready: Prepared, plain: Path, target: Path, tmp_path: Path) -> None:
    """SpecForge's keys, of layer ids too, and with token embeddings, which are the target's here."""
    config = json.loads((plain / "config.json").read_text())
    ids = [number - 1 for number in config.pop("eagle_aux_hidden_state_layer_ids")]
    del config["num_aux_hidden_states"], config["target_identity"]
    tensors = load_file(plain / "model.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"eagle_config": {"eagle_aux_hidden_state_layer_ids": ids}})
    )
    save_file({**tensors, "embed_tokens.weight": ready.teacher.embed_WH}, tmp_path / "model.safetensors")
    head = _head(ready, "none")
    warm_start(head, tmp_path, target)
    assert torch.equal(head.fc.weight, tensors["fc.weight"])
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_scaling": {"rope_type": "llama3"}}))
    with pytest.raises(RecipeError, match=rf"^head\.start: {tmp_path}: .*rope_scaling"):
        warm_start(head, tmp_path, target)


def test_batches_that_processes_cannot_share_are_refused() -> None:
    class Three(Processes):
        def __init__(self) -> None:
            pass

    three = Three()
    three.count, three.rank = 3, 2
    assert three.share(["a", "b", "c", "d"]) == ["c", None]
    three.rank = 0
    assert three.share(["a", "b", "c", "d"]) == ["a", "d"]
