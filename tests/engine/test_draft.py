# SPDX-License-Identifier: Apache-2.0
"""The served head on a real engine: lossless, the right distribution, and the trainer's logits."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from transformers import Qwen3ForCausalLM

from aerie.draft_models.checkpoint import read_draft
from aerie.draft_models.contract import GateKind
from aerie.draft_models.modeling import Eagle3Head
from aerie.draft_models.offline import OfflineEngine
from aerie.draft_models.parity import States, compare

if TYPE_CHECKING:
    from vllm import LLM

pytestmark = pytest.mark.engine

VOCAB = 260
DRAFT_TOKENS = 3
NEW_TOKENS = 48
PROMPT_LENGTHS = (1, 2, 3, 7, 16, 40, 90, 300) * 3
CHUNK = 256
"""Tokens of one engine step: the longest prompts are prefilled in two chunks."""
LOGIT_TOLERANCE = 1e-4
"""Float32 on both sides; sums are taken in another order. Logits here span about 10."""

SAMPLES, SAMPLED_TOKENS = 1500, 4
OTHER_TEMPERATURE = 1.15
FALSE_ALARM_SIGMAS = 5.0
SIMULATIONS = 40


class Served(NamedTuple):
    gate: GateKind
    draft: Path
    llm: "LLM"


def random_prompts(lengths: Sequence[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(256, (length,), generator=generator).tolist() for length in lengths]


def generate(llm: "LLM", prompts: list[list[int]], **sampling: Any) -> list[list[int]]:  # noqa: ANN401
    from vllm import SamplingParams

    parameters = SamplingParams(ignore_eos=True, detokenize=False, **sampling)
    inputs: Any = [{"prompt_token_ids": prompt} for prompt in prompts]
    return [list(request.outputs[0].token_ids) for request in llm.generate(inputs, parameters, use_tqdm=False)]


def counter(llm: "LLM", name: str) -> int:
    return sum(getattr(metric, "value", 0) for metric in llm.get_metrics() if metric.name == name)


@pytest.fixture(scope="module")
def undrafted(tiny_target: Path, open_engine: Callable[..., AbstractContextManager["LLM"]]) -> list[list[int]]:
    with open_engine(tiny_target, max_num_batched_tokens=CHUNK) as llm:
        return generate(llm, random_prompts(PROMPT_LENGTHS), temperature=0, max_tokens=NEW_TOKENS)


@pytest.fixture(scope="module", params=["elementwise", "headwise", "none"])
def served(
    request: pytest.FixtureRequest,
    undrafted: list[list[int]],  # its engine must be gone before the next one starts
    tiny_target: Path,
    tiny_drafts: Mapping[GateKind, Path],
    open_engine: Callable[..., AbstractContextManager["LLM"]],
) -> Iterator[Served]:
    draft = tiny_drafts[request.param]
    with open_engine(tiny_target, draft, DRAFT_TOKENS, max_num_batched_tokens=CHUNK) as llm:
        yield Served(request.param, draft, llm)


@pytest.fixture(scope="module")
def target(tiny_target: Path) -> Qwen3ForCausalLM:
    model: Qwen3ForCausalLM = Qwen3ForCausalLM.from_pretrained(
        tiny_target, dtype=torch.float32, attn_implementation="sdpa"
    )
    model.eval()
    return model


def test_greedy_output_is_token_identical_without_the_draft(served: Served, undrafted: list[list[int]]) -> None:
    drafted = generate(served.llm, random_prompts(PROMPT_LENGTHS), temperature=0, max_tokens=NEW_TOKENS)
    assert drafted == undrafted
    # Otherwise it would prove little: drafts must have been accepted, and rejected.
    accepted = counter(served.llm, "vllm:spec_decode_num_accepted_tokens")
    proposed = counter(served.llm, "vllm:spec_decode_num_draft_tokens")
    assert 0.1 < accepted / proposed < 0.9


def test_gated_heads_are_ours_and_the_plain_one_is_vllm_s_own(served: Served) -> None:
    (kind,) = served.llm.collective_rpc(lambda worker: type(worker.model_runner.drafter.model))
    ours, stock = "aerie.draft_models.vllm_model", "vllm.model_executor.models.llama_eagle3"
    assert kind.__module__ == (stock if served.gate == "none" else ours)


@torch.no_grad()
def conditionals(target: Qwen3ForCausalLM, prompt: list[int], outputs: list[list[int]]) -> torch.Tensor:
    """What each sampled token should have been drawn from, given those before it: [samples, tokens, vocabulary]."""
    sequences = torch.tensor([[*prompt, *output] for output in outputs])
    logits: torch.Tensor = target(sequences[:, :-1]).logits[:, len(prompt) - 1 :]
    return logits.softmax(-1)


def rank_bins(tokens_ST: torch.Tensor, sorted_ids_STV: torch.Tensor) -> torch.Tensor:
    """How likely a token was where it was drawn: rank 0, 1 to 2, 3 to 6, 7 to 14, … from 0 on."""
    rank_ST = (sorted_ids_STV == tokens_ST.unsqueeze(-1)).int().argmax(-1)
    return (rank_ST + 1).log2().long()


def total_variation(classes_ST: torch.Tensor, expected_TC: torch.Tensor) -> torch.Tensor:
    """Between the observed and the expected share of each class, for each token position: [T]."""
    observed_TC = torch.nn.functional.one_hot(classes_ST, expected_TC.shape[-1]).double().mean(0)
    return (observed_TC - expected_TC).abs().sum(-1) / 2


def draw(probabilities_STV: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.multinomial(probabilities_STV.flatten(0, 1), 1, generator=generator).view(probabilities_STV.shape[:2])


# The sampler does not see which gate made a draft: one kind is enough.
@pytest.mark.parametrize("served", ["elementwise"], indirect=True)
def test_sampling_at_temperature_1_follows_the_target_s_distribution(served: Served, target: Qwen3ForCausalLM) -> None:
    """Token 0 is sampled without a draft, tokens 1 to 3 through drafting and rejection.

    The statistic is the total variation, at each position, between what was drawn and what should have been, given each
    sample's own prefix; once over tokens and once over bins of a token's rank. Its null distribution is simulated: five
    sigmas make a false alarm rarer than 1e-5. Power: over ranks, as many samples drawn at temperature 1.15 instead of 1
    are flagged at every position, in every one of the simulated repetitions.
    """
    prompt = random_prompts([9])[0]
    outputs = generate(served.llm, [prompt] * SAMPLES, temperature=1.0, max_tokens=SAMPLED_TOKENS)
    tokens_ST, chances_STV = torch.tensor(outputs), conditionals(target, prompt, outputs)
    sorted_STV, ids_STV = chances_STV.sort(-1, descending=True)
    bins_V = (torch.arange(VOCAB) + 1.0).log2().long()
    expected_tokens_TV = chances_STV.double().mean(0)
    expected_bins_TC = torch.zeros(SAMPLED_TOKENS, int(bins_V.max()) + 1, dtype=torch.double)
    expected_bins_TC.index_add_(1, bins_V, sorted_STV.double().mean(0))

    def statistics(drawn_ST: torch.Tensor) -> torch.Tensor:
        over_tokens_T = total_variation(drawn_ST, expected_tokens_TV)
        return torch.stack([over_tokens_T, total_variation(rank_bins(drawn_ST, ids_STV), expected_bins_TC)])

    generator = torch.Generator().manual_seed(0)
    null = torch.stack([statistics(draw(chances_STV, generator)) for _ in range(SIMULATIONS)])
    threshold_2T = null.mean(0) + FALSE_ALARM_SIGMAS * null.std(0)
    assert (statistics(tokens_ST) < threshold_2T).all()

    hotter_STV = (chances_STV.log() / OTHER_TEMPERATURE).softmax(-1)
    flagged = [statistics(draw(hotter_STV, generator))[1] > threshold_2T[1] for _ in range(SIMULATIONS)]
    assert torch.stack(flagged).all()


@pytest.mark.parametrize("served", ["elementwise"], indirect=True)
@pytest.mark.parametrize(("top_k", "top_p"), [(3, 1.0), (0, 0.5), (3, 0.9)])
def test_top_k_and_top_p_reach_drafted_tokens(
    served: Served, target: Qwen3ForCausalLM, top_k: int, top_p: float
) -> None:
    prompt = random_prompts([9])[0]
    sampling = {"temperature": 1.0, "top_k": top_k, "top_p": top_p}
    outputs = generate(served.llm, [prompt] * 128, max_tokens=SAMPLED_TOKENS, **sampling)
    sorted_STV, ids_STV = conditionals(target, prompt, outputs).sort(-1, descending=True)
    rank_ST1 = (ids_STV == torch.tensor(outputs).unsqueeze(-1)).int().argmax(-1, keepdim=True)
    mass_before_STV = sorted_STV.cumsum(-1) - sorted_STV
    assert rank_ST1.max() < (top_k or VOCAB)
    assert mass_before_STV.gather(-1, rank_ST1).max() <= top_p + 1e-5


def test_greedy_neighbours_of_sampling_requests_are_undisturbed(served: Served, undrafted: list[list[int]]) -> None:
    from vllm import SamplingParams

    common: dict[str, Any] = {"ignore_eos": True, "detokenize": False, "max_tokens": NEW_TOKENS}
    others: list[dict[str, Any]] = [
        {"top_k": 5},
        {"top_p": 0.9, "seed": 1},
        {"repetition_penalty": 1.2, "logprobs": 2},
        {"temperature": 0.3},
    ]
    prompts: Any = [{"prompt_token_ids": prompt} for prompt in random_prompts(PROMPT_LENGTHS)]
    greedy = SamplingParams(temperature=0, **common)
    sampling = [SamplingParams(**(common | other)) for other in others]
    mixed = [greedy if index % 2 == 0 else sampling[index // 2 % len(sampling)] for index in range(len(prompts))]
    requests = served.llm.generate(prompts, mixed, use_tqdm=False)
    assert [list(request.outputs[0].token_ids) for request in requests[::2]] == undrafted[::2]


@pytest.mark.parametrize("served", ["elementwise"], indirect=True)
def test_a_seed_gives_the_same_tokens_however_its_prompt_is_cut(served: Served) -> None:
    whole, neighbour = random_prompts([CHUNK - 20, CHUNK - 40])
    sampling = {"temperature": 1.0, "seed": 5, "max_tokens": NEW_TOKENS}
    (alone,) = generate(served.llm, [whole], **sampling)
    _, cut = generate(served.llm, [neighbour, whole], **sampling)
    assert cut == alone


def aux_states(target: Qwen3ForCausalLM, layers: Sequence[int]) -> States:
    @torch.no_grad()
    def states(tokens_L: torch.Tensor) -> torch.Tensor:
        every = target(tokens_L[None], output_hidden_states=True).hidden_states
        return torch.cat([every[layer][0] for layer in layers], dim=-1)

    return states


def test_served_logits_are_the_trainer_s(served: Served, target: Qwen3ForCausalLM) -> None:
    """From token ids to draft logits: the same aux states, fusion, gate, attention and recurrence on both sides.

    The trainer's side computes the target's states with transformers, so that a wrong layer id fails too.
    """
    config, tensors = read_draft(served.draft)
    head = Eagle3Head(config, target.model.embed_tokens.weight)
    head.load_state_dict(tensors)
    engine = OfflineEngine(served.llm)
    (prompt,) = random_prompts([CHUNK - 20])
    computed = compare(engine, head, prompt, DRAFT_TOKENS, aux_states(target, config.aux_hidden_state_layer_ids))
    recorded = compare(engine, head, prompt, DRAFT_TOKENS)
    for parity in (computed, recorded):
        assert parity.proposals > 6
        assert parity.difference < LOGIT_TOLERANCE
        assert parity.same_drafts == parity.drafts
    # Power: another layer's states, or another gate, are noticed.
    shifted = [layer - 1 for layer in config.aux_hidden_state_layer_ids]
    assert not compare(engine, head, prompt, DRAFT_TOKENS, aux_states(target, shifted)).holds
    head.midlayer.self_attn.o_proj.weight.data.mul_(1.01)
    assert not compare(engine, head, prompt, DRAFT_TOKENS).holds
