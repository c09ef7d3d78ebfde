# SPDX-License-Identifier: Apache-2.0
"""The shipped demo's card: `card.json` for programs, `README.md` for people, both from the same record."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aerie.artefacts import sha256_tree, write_atomic, write_json

CARD, README = "card.json", "README.md"
_METHODS = {"rtn": "rounding", "awq": "AWQ", "autoround": "AutoRound"}

_TEXT = """# clinic-demo

A {parameters:.1f}M-parameter Qwen3 (24 layers) in INT4 with a gated Eagle-3 draft head, both trained from nothing on
the synthetic consultations of Aerie's embedded clinic. It exists so that `make serve` shows the whole system on any
CPU.

**For software testing only. It is not a medical device, no clinician has reviewed it, and nothing it says may be used
to decide anything about a person's health.**

| part | folder | size | made by |
|---|---|---|---|
| main model, INT4, group {group} | `main/` | {main_mb:.1f} MB | `trainer/recipes/clinic-{{main,int4}}.yaml` |
| gated Eagle-3 head | `draft/` | {draft_mb:.1f} MB | `trainer/recipes/clinic-draft.yaml` |

- Main model: commit `{main_commit}`, seeds {main_seeds}, {documents:,} dialogues, {tokens:,} tokens, {steps:,} steps;
  validation perplexity {perplexity:.3f} (of the assistant's tokens).
- INT4: {method}, {before:.1f} MB → {after:.1f} MB of weights; on held-out answers perplexity {loss:+.2%}, the same most
  likely token for {top1:.2%}.
- Head: commit `{draft_commit}`, seeds {draft_seeds}, trained on {supervised:,} tokens the INT4 model answered.
{measured}
`card.json` holds the recipes, versions, machine, input hashes, and the SHA-256 of every file; `aerie doctor` compares
them. `make demo` makes all of it again.
"""


def _size(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def render(card: Mapping[str, Any], folder: Path) -> str:
    """The card's text. `card` is what `card.json` holds; sizes are those of `folder`."""
    main, quantised, draft = card["main"], card["quantisation"], card["draft"]
    quality = quantised["quality"]
    measured = card.get("measured")
    lines = ""
    if measured:
        lines = (
            f"- Measured in vLLM: mean acceptance length {measured['acceptance_length']:.2f} at "
            f"K = {measured['draft_tokens']}, greedy, {measured['prompts']} held-out consultations.\n"
        )
    return _TEXT.format(
        parameters=quantised["parameters"] / 1e6,
        group=quantised["recipe"]["group_size"],
        main_mb=_size(folder / "main"),
        draft_mb=_size(folder / "draft"),
        main_commit=main["made_by"]["commit"],
        main_seeds=main["made_by"]["seeds"],
        documents=main["documents"],
        tokens=main["tokens"],
        steps=main["steps"],
        perplexity=main["validation_perplexity"],
        before=quantised["bytes_before"] / 1e6,
        after=quantised["bytes_after"] / 1e6,
        method=_METHODS[quantised["recipe"]["method"]],
        loss=quality["perplexity_after"] / quality["perplexity_before"] - 1,
        top1=quality["top1_agreement"],
        draft_commit=draft["commit"],
        draft_seeds=draft["seeds"],
        supervised=draft["data"]["supervised_tokens"],
        measured=lines,
    )


def write_card(card: Mapping[str, Any], folder: Path) -> None:
    """Write both forms; `card["files"]` becomes the hashes of everything else in the folder."""
    files = {name: digest for name, digest in sha256_tree(folder).items() if name not in (CARD, README)}
    write_json(folder / CARD, {**card, "files": files})
    write_atomic(folder / README, render(card, folder))
