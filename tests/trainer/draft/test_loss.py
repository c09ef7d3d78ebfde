# SPDX-License-Identifier: Apache-2.0
"""The loss against plain PyTorch, and what is and is not supervised."""

from collections.abc import Callable
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aerie.draft_models.contract import DraftConfig
from aerie.draft_models.modeling import Eagle3Head
from aerie.trainer.draft.data import Batch
from aerie.trainer.draft.initial import initial_head
from aerie.trainer.draft.loss import Divergence, chained, divergence, row_counts, shifted, training_time_test
from aerie.trainer.draft.target import Teacher

STEPS, DECAY = 3, 0.8
MakeConfig = Callable[..., DraftConfig]


def _teacher(config: DraftConfig) -> Teacher:
    generator = torch.Generator().manual_seed(3)
    embed, head = (torch.randn(config.vocab_size, config.hidden_size, generator=generator) for _ in range(2))
    return Teacher(embed, head, torch.rand(config.hidden_size, generator=generator) + 0.5, 1e-6)


def _batch(config: DraftConfig, rows: list[list[int]], length: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    count, widest = len(rows), max(map(len, rows))
    width = len(config.aux_hidden_state_layer_ids) * config.hidden_size
    padded = torch.tensor([one + [0] * (widest - len(one)) for one in rows])
    mask = torch.tensor([[True] * len(one) + [False] * (widest - len(one)) for one in rows])
    return Batch(
        next_ids_BL=torch.randint(0, config.vocab_size, (count, length), generator=generator),
        aux_BLA=torch.randn(count, length, width, generator=generator),
        rows_BR=padded,
        row_mask_BR=mask,
        final_BRH=torch.randn(count, widest, config.hidden_size, generator=generator),
        choices_BR=torch.randint(0, config.vocab_size, (count, widest), generator=generator),
        drawn_BR=torch.randint(0, config.vocab_size, (count, widest), generator=generator),
    )


def _new_head(config: DraftConfig, teacher: Teacher) -> Eagle3Head:
    return initial_head(config, teacher, torch.arange(0, config.vocab_size, 2)[: config.draft_vocab_size], seed=0)


def _plain(kind: Divergence, z_MV: Tensor, p_MV: Tensor) -> Tensor:
    cross = F.cross_entropy(z_MV, p_MV, reduction="none")
    accepted = torch.minimum(z_MV.softmax(-1), p_MV).sum(-1)
    kl = cross - F.cross_entropy(p_MV.log(), p_MV, reduction="none")
    mix = torch.exp(-3 * accepted.detach())
    return {"ce": cross, "tv": 1 - accepted, "lk": -accepted.log(), "lk_hybrid": mix * kl + (1 - mix) * (1 - accepted)}[
        kind
    ]


@pytest.mark.parametrize("kind", get_args(Divergence))
def test_a_divergence_and_its_gradients_equal_plain_pytorch(kind: Divergence) -> None:
    generator = torch.Generator().manual_seed(0)
    normed = torch.randn(17, 8, generator=generator, requires_grad=True)
    head = torch.randn(31, 8, generator=generator, requires_grad=True)
    p = torch.randn(17, 31, generator=generator).softmax(-1)
    weight = torch.rand(17, generator=generator)
    ours, predicted = divergence(normed, head, p, weight, kind)
    expected = (_plain(kind, normed @ head.T, p) * weight).sum()
    assert predicted.tolist() == (normed @ head.T).argmax(-1).tolist()
    torch.testing.assert_close(ours, expected)
    for mine, theirs in zip(
        torch.autograd.grad(3 * ours, [normed, head]), torch.autograd.grad(3 * expected, [normed, head]), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


def test_a_frozen_output_projection_gets_no_gradient() -> None:
    normed, head = torch.randn(5, 4, requires_grad=True), torch.randn(7, 4)
    divergence(normed, head, torch.rand(5, 7).softmax(-1), torch.ones(5))[0].backward()
    assert normed.grad is not None
    assert head.grad is None


def _naive_loss(head: Eagle3Head, teacher: Teacher, batch: Batch) -> Tensor:
    """Every row of every document on its own, with ordinary attention over a growing sequence."""
    sums, counts = [torch.zeros(()) for _ in range(STEPS)], [0] * STEPS
    ids_V = head.target_ids_V
    p_BRV = teacher.logits(batch.final_BRH, ids_V).softmax(-1)
    for document in range(len(batch.rows_BR)):
        rows = batch.rows_BR[document][batch.row_mask_BR[document]].tolist()
        for place, row in enumerate(rows):
            hidden = head.fuse(batch.aux_BLA[document : document + 1, : row + 1])
            for s in range(STEPS):
                if rows[place : place + s + 1] != list(range(row, row + s + 1)):
                    break
                normed, following = head(batch.next_ids_BL[document : document + 1, : row + 1 + s], hidden)
                hidden = torch.cat([hidden, following[:, -1:]], dim=1)
                if batch.choices_BR[document, place + s] in ids_V:
                    logits = head.logits(normed[0, -1])
                    sums[s] = sums[s] + F.cross_entropy(logits, p_BRV[document, place + s])
                    counts[s] += 1
    return torch.stack([DECAY**s * sums[s] / max(1, counts[s]) for s in range(STEPS)]).sum()


@pytest.mark.parametrize("draft_vocab_size", [23, 60])
def test_loss_and_gradients_equal_one_chain_at_a_time(tiny_config: MakeConfig, draft_vocab_size: int) -> None:
    config: DraftConfig = tiny_config(draft_vocab_size=draft_vocab_size)
    teacher = _teacher(config)
    head = initial_head(config, teacher, torch.arange(draft_vocab_size), seed=0)
    # Two answers in one document, an answer of one row, and padding.
    batch = _batch(config, [[2, 3, 4, 5, 8, 9], [4], [1, 2, 3]], length=12)
    ours, expected = training_time_test(head, teacher, batch, STEPS, DECAY).loss, _naive_loss(head, teacher, batch)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    parameters = list(head.parameters())
    for mine, theirs in zip(
        torch.autograd.grad(ours, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=1e-4)


def test_a_chain_ends_with_its_answer() -> None:
    rows = torch.tensor([[2, 3, 4, 7, 8, 0]])
    mask = torch.tensor([[True] * 5 + [False]])
    assert chained(rows, mask, 0).tolist() == [[True, True, True, True, True, False]]
    assert chained(rows, mask, 1).tolist() == [[False, True, True, False, True, False]]
    assert chained(rows, mask, 2).tolist() == [[False, False, True, False, False, False]]


def test_shifting_moves_rows_not_features() -> None:
    x = torch.arange(6.0).view(1, 3, 2)
    assert shifted(x, 1).tolist() == [[[0, 0], [0, 1], [2, 3]]]
    assert shifted(x[..., 0], 2).tolist() == [[0, 0, 0]]


def test_documents_of_a_batch_do_not_meet(tiny_config: MakeConfig) -> None:
    config: DraftConfig = tiny_config()
    teacher = _teacher(config)
    head = _new_head(config, teacher)
    batch = _batch(config, [[2, 3, 4, 5], [3, 4, 5, 6]], length=9)
    alone = Batch(*(getattr(batch, name)[:1] for name in Batch.__dataclass_fields__))
    both, one = (training_time_test(head, teacher, data, STEPS, DECAY) for data in (batch, alone))
    assert both.hits_SBR[:, :1].tolist() == one.hits_SBR.tolist()
    aux = batch.aux_BLA.clone().requires_grad_()
    changed = Batch(
        **{**batch.__dict__, "aux_BLA": aux, "row_mask_BR": batch.row_mask_BR & torch.tensor([[True], [False]])}
    )
    training_time_test(head, teacher, changed, STEPS, DECAY).loss.backward()
    assert aux.grad is not None
    assert aux.grad[0].abs().sum() > 0
    assert aux.grad[1].abs().sum() == 0


def test_choices_outside_the_draft_vocabulary_are_not_taught(tiny_config: MakeConfig) -> None:
    config: DraftConfig = tiny_config()
    teacher = _teacher(config)
    head = _new_head(config, teacher)
    batch = _batch(config, [[2, 3, 4]], length=6)
    odd = Batch(**{**batch.__dict__, "choices_BR": torch.full_like(batch.choices_BR, 1)})
    outcome = training_time_test(head, teacher, odd, STEPS, DECAY)
    assert outcome.loss.item() == 0
    assert not outcome.hits_SBR.any()


def test_parts_of_a_batch_add_up_to_it(tiny_config: MakeConfig) -> None:
    config: DraftConfig = tiny_config()
    teacher = _teacher(config)
    head = _new_head(config, teacher)
    whole = _batch(config, [[2, 3, 4, 5], [3, 4, 5, 6], [1, 2, 3, 4]], length=9)
    parts = [Batch(*(getattr(whole, name)[chosen] for name in Batch.__dataclass_fields__)) for chosen in ([0, 2], [1])]
    counts = sum((row_counts(head, part, STEPS) for part in parts), torch.zeros(STEPS))
    assert counts.tolist() == row_counts(head, whole, STEPS).tolist()
    losses = [training_time_test(head, teacher, part, STEPS, DECAY, counts_S=counts).loss for part in parts]
    torch.testing.assert_close(sum(losses), training_time_test(head, teacher, whole, STEPS, DECAY).loss)


def test_on_policy_a_chain_counts_while_the_answer_follows_it(tiny_config: MakeConfig) -> None:
    config: DraftConfig = tiny_config(draft_vocab_size=60)
    teacher = _teacher(config)
    head = initial_head(config, teacher, torch.arange(60), seed=0)
    batch = _batch(config, [[2, 3, 4]], length=6)
    first = training_time_test(head, teacher, batch, 1, 1.0).loss
    never = Batch(**{**batch.__dict__, "drawn_BR": torch.full_like(batch.drawn_BR, -1)})
    # Nothing is ever accepted: step 0 alone is visited.
    torch.testing.assert_close(training_time_test(head, teacher, never, STEPS, 1.0, on_policy=True).loss, first)
    # Greedy answers that the head drafts right: every state is visited.
    hidden = head.fuse(batch.aux_BLA)
    state = head.unroll(batch.next_ids_BL, hidden, batch.rows_BR, 1)
    normed, _ = head.step(0, hidden[:, 2:5], state)
    drafts = head.logits(normed).argmax(-1)
    right = Batch(**{**batch.__dict__, "drawn_BR": drafts, "choices_BR": drafts})
    two = [training_time_test(head, teacher, right, 2, 1.0, on_policy=policy).loss for policy in (True, False)]
    torch.testing.assert_close(two[0], two[1])
