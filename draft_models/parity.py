# SPDX-License-Identifier: Apache-2.0
"""The served head against the PyTorch one: the same inputs must give the same draft logits.

A head can validate well and be dead when served: a wrong tensor name, gate, norm or position costs acceptance and no
error. So the head is watched inside a real engine, and each of its proposals is computed again by `Eagle3Head.chain`.

Read against vLLM 0.32.0, runner V1 (`v1/spec_decode/llm_base_proposer.py`). Needs an engine in this process, without
compiled graphs, and at least two drafted tokens: the second step tells where the first one stood.

Shapes: L tokens, S steps, A aux layers times hidden size, V draft vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aerie.draft_models.modeling import Eagle3Head
from aerie.draft_models.offline import OfflineEngine, Sampling

RELATIVE_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-5, torch.float16: 2**-8}
"""Of the largest logit, by the engine's type: sums are taken in another order on the two sides."""

States = Callable[[Tensor], Tensor]
"""The aux states [L, A] of token ids [L]."""


class ParityError(RuntimeError):
    """The comparison could not be made."""


@dataclass
class Step:
    """One pass of the served head; the first of a proposal covers all new tokens, the others one each."""

    input_ids: Tensor
    positions: Tensor
    logits_1V: Tensor | None = None


@dataclass
class Proposal:
    """What the served head computed between two passes of the target."""

    aux_TA: Tensor
    steps: list[Step]


class Recorder:
    """Watches the drafter; hooks are removed by `detach`."""

    def __init__(self) -> None:
        self.proposals: list[Proposal] = []
        self.dtype = torch.float32
        self._chunks: list[Tensor] = []
        self._hooks: list[Any] = []

    def attach(self, worker: Any) -> None:  # noqa: ANN401 -- vLLM's worker
        """Start watching. Raises ParityError for a runner that has no drafter to watch."""
        drafter = getattr(worker.model_runner, "drafter", None)
        if drafter is None:
            raise ParityError("this engine's runner cannot be watched; set VLLM_USE_V2_MODEL_RUNNER=0")
        model, decoder = drafter.model, drafter.model.model
        self.dtype = decoder.fc.weight.dtype
        norms = getattr(decoder, "fc_norm", None)
        self._hooks = [norm.register_forward_pre_hook(self._on_norm) for norm in norms or ()]
        self._hooks += [
            decoder.fc.register_forward_pre_hook(self._on_fuse),
            model.register_forward_pre_hook(self._on_step, with_kwargs=True),
            model.logits_processor.register_forward_hook(self._on_logits),
        ]

    def detach(self, _: object = None) -> None:
        """Stop watching."""
        for hook in self._hooks:
            hook.remove()

    def _on_norm(self, _: object, arguments: tuple[Tensor, ...]) -> None:
        self._chunks.append(arguments[0])

    def _on_fuse(self, _: object, arguments: tuple[Tensor, ...]) -> None:
        # Where each aux state has a norm of its own, what goes into the norms is what the head was given.
        aux_TA = torch.cat(self._chunks, dim=-1) if self._chunks else arguments[0]
        self._chunks = []
        self.proposals.append(Proposal(aux_TA.float().cpu(), []))

    def _on_step(self, _: object, __: object, named: dict[str, Tensor]) -> None:
        ids, positions = (named[name].clone().cpu() for name in ("input_ids", "positions"))
        self.proposals[-1].steps.append(Step(ids, positions))

    def _on_logits(self, _: object, __: object, logits_1V: Tensor) -> None:
        self.proposals[-1].steps[-1].logits_1V = logits_1V.float().cpu()


@dataclass(frozen=True)
class Parity:
    """One prompt's comparison."""

    tokens: int
    """Of the prompt."""
    proposals: int
    difference: float
    """Largest absolute difference of two logits."""
    largest: float
    """Largest absolute logit of the PyTorch head, which the tolerance is relative to."""
    tolerance: float
    drafts: int
    same_drafts: int
    """Drafted tokens, and those that both sides chose."""

    @property
    def holds(self) -> bool:
        """Whether something was compared, and no logit differs by more than the tolerance."""
        return self.proposals > 0 and self.difference <= self.tolerance


def compare(
    engine: OfflineEngine, head: Eagle3Head, prompt: Sequence[int], draft_tokens: int, states: States | None = None
) -> Parity:
    """Answer one prompt greedily and compare all proposals.

    Args:
        engine: In this process, with the head as its draft.
        head: The same checkpoint in PyTorch, float32.
        prompt: Token ids; the engine must take them in one chunk, since at a chunk's end runner V1 feeds the draft
            the prompt's last token in place of the next one.
        draft_tokens: K of the engine, at least 2.
        states: Computes the target's aux states by other means, so that a wrong layer id fails too; None takes those
            that the engine gave its head.
    """
    if draft_tokens < 2:
        raise ParityError("--draft-tokens: parity needs at least 2")
    recorder = Recorder()
    engine.in_worker(recorder.attach)
    try:
        ((answer,),) = engine.generate([prompt], Sampling(max_tokens=8 * draft_tokens, ignore_eos=True))
    finally:
        recorder.detach()
    tokens_L = torch.tensor([*prompt, *answer.token_ids])
    given_LA = states(tokens_L) if states is not None else None
    return _replay(recorder, head, tokens_L, given_LA, len(prompt), draft_tokens)


def _replay(
    recorder: Recorder, head: Eagle3Head, tokens_L: Tensor, given_LA: Tensor | None, prompt: int, draft_tokens: int
) -> Parity:
    width = len(head.config.aux_hidden_state_layer_ids) * head.config.target_hidden_size
    aux_LA = torch.zeros(len(tokens_L) + draft_tokens + 1, width) if given_LA is None else given_LA
    proposals, difference, largest, drafts, same = 0, 0.0, 0.0, 0, 0
    for proposal in recorder.proposals:
        first = proposal.steps[0].positions
        if given_LA is None:
            # Rows of rejected tokens are overwritten when their positions are computed again.
            rows = min(len(proposal.aux_TA), len(first))
            inside = first[:rows] < len(aux_LA)
            aux_LA[first[:rows][inside]] = proposal.aux_TA[:rows][inside]
        if len(proposal.steps) < draft_tokens:
            continue
        # The first recurrent step stands right behind the tokens whose states are known.
        known = int(proposal.steps[1].positions[0])
        if known + 1 > len(tokens_L):
            continue
        drafted_S, logits_SV = head.chain(tokens_L[1 : known + 1], aux_LA[:known], draft_tokens)
        proposals += 1
        for step in range(draft_tokens):
            served_1V = proposal.steps[step].logits_1V
            if served_1V is None:
                raise ParityError(f"the served head computed no logits at step {step}")
            ours_V = logits_SV[step]
            difference = max(difference, float((served_1V[0, : len(ours_V)] - ours_V).abs().max()))
            largest = max(largest, float(ours_V.abs().max()))
            chosen = head.target_ids_V[served_1V[0, : len(ours_V)].argmax()]
            drafts, same = drafts + 1, same + int(chosen == drafted_S[step])
            if chosen != drafted_S[step]:
                # From here on the two sides are fed different tokens; this step's logits say whether it was a tie.
                break
    tolerance = RELATIVE_TOLERANCE[recorder.dtype] * max(1.0, largest)
    return Parity(prompt, proposals, difference, largest, tolerance, drafts, same)


def made_up_prompts(vocab_size: int, longest: int) -> list[list[int]]:
    """Token sequences of several lengths, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    lengths = [length for length in (1, 7, 40, 130) if length <= longest] or [longest]
    return [torch.randint(vocab_size, (length,), generator=generator).tolist() for length in lengths]
