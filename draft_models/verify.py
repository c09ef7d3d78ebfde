# SPDX-License-Identifier: Apache-2.0
"""`aerie draft verify`: everything that can be wrong between a head and its target, checked one by one.

First the files, then, in a real engine, the logits (parity.py).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aerie.artefacts import sha256_file
from aerie.draft_models.checkpoint import PROVENANCE, identify_target, read_head, verify_draft
from aerie.draft_models.contract import ContractError, DraftConfig

if TYPE_CHECKING:
    from torch import Tensor

    from aerie.draft_models.parity import Parity

MIBIBYTES = 2**20
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True)
class Check:
    """One finding; `passed` is None for what could not be checked and is no fault."""

    name: str
    passed: bool | None
    detail: str


def check_files(draft: Path, target: Path) -> Iterator[Check]:
    """Shapes, maps, layers, norms, hashes, vocabulary. Stops after the first when the files cannot be served.

    A head of another maker is served or refused as `aerie serve` does; what the contract has no words for is noted.
    """
    try:
        remarks = verify_draft(draft, target)
    except ContractError as error:
        yield Check("shapes", False, str(error))
        return
    try:
        config, tensors = read_head(draft, target)
    except ContractError as error:
        yield Check("shapes", True, "as vLLM's class has them")
        yield from (Check("configuration", None, remark) for remark in remarks)
        yield Check("contents", None, f"not looked at: {error}")
        return
    yield Check("shapes", True, f"{len(tensors)} tensors as {config.to_hf()['architectures'][0]} has them")
    if config.target is None:
        yield from (Check("configuration", None, remark) for remark in remarks)
    mapped = f"{config.draft_vocab_size:,} of {config.vocab_size:,} target tokens"
    yield Check("vocabulary map", True, mapped if config.maps_vocabulary else "every target token can be drafted")
    layers = list(config.aux_hidden_state_layer_ids)
    yield Check("layer ids", True, f"{layers} of {_target_shape(target)['num_hidden_layers']} layers")
    yield _norms(tensors)
    yield from _hashes(config, target)
    yield from _tokenizer(draft, target, config, tensors)


def _target_shape(target: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((target / "config.json").read_text())
    return config.get("text_config") or config


def _norms(tensors: dict[str, "Tensor"]) -> Check:
    floating = {name: tensor.float() for name, tensor in tensors.items() if tensor.is_floating_point()}
    if broken := sorted(name for name, tensor in floating.items() if not tensor.isfinite().all()):
        return Check("norms", False, f"not finite: {', '.join(broken)}; export the head again from a sound checkpoint")
    # A gate of zeros is a sound one: it opens every channel by half.
    if empty := sorted(name for name, tensor in floating.items() if "g_proj" not in name and not tensor.any()):
        return Check("norms", False, f"all zeros: {', '.join(empty)}; the head was never trained")
    largest = max(floating, key=lambda name: float(floating[name].norm()))
    return Check("norms", True, f"finite and not zero; the largest is {float(floating[largest].norm()):.3g}, {largest}")


def _hashes(config: DraftConfig, target: Path) -> Iterator[Check]:
    trained_for = config.target
    if trained_for is None:
        yield Check("target", None, "the head does not say which target it was trained for")
        return
    found = identify_target(target)
    fix = f"the head was trained for {trained_for.name!r}: give that one, or train a head for this"
    same = found.config_sha256 == trained_for.config_sha256
    yield Check("target config.json", same, f"SHA-256 {found.config_sha256[:16]}" if same else f"differs; {fix}")
    ours, theirs = trained_for.weights_sha256, found.weights_sha256
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    detail = f"differ: {', '.join(differing)}; {fix}" if differing else f"{len(ours)} files, SHA-256 as recorded"
    yield Check("target weights", not differing, detail)


def _tokenizer(draft: Path, target: Path, config: DraftConfig, tensors: dict[str, "Tensor"]) -> Iterator[Check]:
    recorded = json.loads((draft / PROVENANCE).read_text()).get("inputs", {}) if (draft / PROVENANCE).exists() else {}
    names = [name for name in TOKENIZER_FILES if name in recorded and (target / name).is_file()]
    if differing := [name for name in names if sha256_file(target / name) != recorded[name]]:
        yield Check("tokenizer", False, f"not the one of the training: {', '.join(differing)} differ")
        return
    if not (target / "tokenizer.json").is_file():
        yield Check("tokenizer", None, "the target has no tokenizer.json")
        return
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(target)
    if len(tokenizer) > config.vocab_size:
        yield Check("tokenizer", False, f"{len(tokenizer):,} tokens, the head knows {config.vocab_size:,}")
        return
    how = "as in the training" if names else "fits; the head does not say which it was trained with"
    yield Check("tokenizer", True, f"{len(tokenizer):,} tokens of {config.vocab_size:,}, {how}")
    end = tokenizer.eos_token_id
    if config.maps_vocabulary and end is not None and not bool(tensors["t2d"][end]):
        yield Check("end of turn", None, f"{tokenizer.eos_token} cannot be drafted: the last token is never a guess")


def check_parity(
    draft: Path, target: Path, prompts: Sequence[Sequence[int]] | None, draft_tokens: int
) -> Iterator["Parity"]:
    """Serve the head in an engine in this process and compare; raises ParityError and what vLLM raises."""
    from aerie.draft_models.modeling import Eagle3Head
    from aerie.draft_models.offline import EngineOptions, offline_engine
    from aerie.draft_models.parity import compare, made_up_prompts

    config, tensors = read_head(draft, target)
    longest = _target_shape(target).get("max_position_embeddings", config.max_position_embeddings)
    chosen = prompts if prompts is not None else made_up_prompts(config.vocab_size, longest - 8 * draft_tokens - 1)
    room = min(longest, max(map(len, chosen)) + 9 * draft_tokens + 1)
    options = EngineOptions(
        model=target,
        draft=draft,
        draft_tokens=draft_tokens,
        max_model_len=room,
        max_num_seqs=1,
        kv_cache_bytes=512 * MIBIBYTES,
        in_process=True,
    )
    with offline_engine(options) as engine:
        head = Eagle3Head(config, engine.in_worker(_embeddings)[: config.vocab_size])
        head.load_state_dict(tensors)
        head.eval()
        for prompt in chosen:
            yield compare(engine, head.float(), prompt, draft_tokens)


def _embeddings(worker: Any) -> "Tensor":  # noqa: ANN401 -- vLLM's worker
    """The token embeddings that the served head uses: the target's."""
    weight: Tensor = worker.model_runner.drafter.model.model.embed_tokens.weight
    return weight.detach().float().cpu().clone()


def verify(
    draft: Path, target: Path, *, prompts: Sequence[Sequence[int]] | None, draft_tokens: int, engine: bool
) -> int:
    """Print a table of all checks; 0 when none failed, else 1 with the reason last."""
    from rich.console import Console
    from rich.table import Table

    checks = list(check_files(draft, target))
    if engine and all(check.passed is not False for check in checks):
        checks += _parity_checks(draft, target, prompts, draft_tokens)
    table = Table("check", "", "finding")
    for check in checks:
        mark = {True: "[green]ok[/]", False: "[red]failed[/]", None: "[yellow]note[/]"}[check.passed]
        table.add_row(check.name, mark, check.detail)
    Console().print(table)
    failed = [check for check in checks if check.passed is False]
    for check in failed:
        print(f"{draft}: {check.name}: {check.detail}")
    return 1 if failed else 0


def _parity_checks(
    draft: Path, target: Path, prompts: Sequence[Sequence[int]] | None, draft_tokens: int
) -> Iterator[Check]:
    try:
        for one in check_parity(draft, target, prompts, draft_tokens):
            detail = (
                f"{one.proposals} proposals: logits differ by at most {one.difference:.2g} (tolerance "
                f"{one.tolerance:.2g}, largest logit {one.largest:.3g}); {one.same_drafts} of {one.drafts} drafts equal"
            )
            yield Check(f"parity, {one.tokens} tokens", one.holds, detail)
    except ContractError as error:
        yield Check("parity", None, f"not compared: {error}")
    except Exception as error:  # whatever an engine dies of is the finding
        yield Check("parity", False, f"the engine failed: {type(error).__name__}: {' '.join(str(error).split())}")
