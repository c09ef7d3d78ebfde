# SPDX-License-Identifier: Apache-2.0
"""The card of a trained head: README.md for people and for Hugging Face, card.json for programs, and its plot.

Acceptance in the engine is known only after the head was exported, so `publish` makes the folder a second time, with
the card in it, and puts it in the place of the first in one step. Nobody sees a head with half a card.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aerie import chart
from aerie.artefacts import output_directory, sha256_tree, write_atomic, write_json
from aerie.draft_models.checkpoint import CONFIG, PROVENANCE
from aerie.draft_models.contract import DraftConfig
from aerie.trainer.draft.journal import Entry, series
from aerie.trainer.draft.served import Measurement

CARD, README, PLOT = "card.json", "README.md", "acceptance.svg"
OURS = (CARD, README, PLOT)
TAGS = ("eagle3", "speculative-decoding", "draft-model", "vllm", "aerie")

_TEXT = """---
library_name: vllm
base_model: {base}
pipeline_tag: text-generation
tags:
{tags}
---

# {title}

An Eagle-3 draft head ({gate}) for `{base}` ({quantisation}), trained on answers of that very checkpoint. It drafts,
the target verifies: the output stays the target's.

```
aerie serve --model TARGET --draft THIS_FOLDER
aerie draft verify THIS_FOLDER --model TARGET
```

## Acceptance

{acceptance}

![acceptance while training, by domain and by position]({plot})

## Training

| | |
|---|---|
| target | `{base}`, {quantisation}, config.json `{config_hash}`, weights {weight_hashes} |
| data | {data} |
| seeds | {seeds} |
| commit | `{commit}` |
| versions | {versions} |

```json
{recipe}
```

`card.json` holds all of this for programs, with the whole curve, the hashes of everything that was read, and the
SHA-256 of every file here.
"""


def publish(draft: Path, output: Path, entries: Sequence[Entry] = (), served: Sequence[Measurement] = ()) -> None:
    """Put the head in `draft` to `output` with its card, all or nothing; both may be the same folder.

    Args:
        draft: A head as `export` wrote it. Its files are linked, not copied, where the file system can.
        output: Replaced in one step.
        entries: The training's journal.
        served: Measurements in the engine, ascending by update; the last is the exported head's.
    """
    card = describe(draft, entries, served)
    with output_directory(output, replaces=PROVENANCE) as staging:
        for path in sorted(draft.iterdir()):
            if path.name not in OURS:
                _link(path, staging / path.name)
        write_atomic(staging / PLOT, chart.draw(panels(entries, served)))
        write_atomic(staging / README, render(card))
        write_json(staging / CARD, {**card, "files": sha256_tree(staging)})


def describe(draft: Path, entries: Sequence[Entry], served: Sequence[Measurement]) -> dict[str, Any]:
    """What `card.json` holds, but for the files' hashes."""
    config = DraftConfig.from_hf(json.loads((draft / CONFIG).read_text()))
    provenance: dict[str, Any] = json.loads((draft / PROVENANCE).read_text())
    return {
        "target": config.target.model_dump(mode="json") if config.target is not None else None,
        "head": config.model_dump(mode="json", exclude={"target"}),
        **{key: value for key, value in provenance.items() if key != "arguments"},
        "recipe": portable(provenance.get("arguments", {})),
        "served": [one.model_dump(mode="json") for one in served],
        "scalars": {name: series(entries, name) for name in sorted({name for one in entries for name in one.scalars})},
    }


def portable(value: Any) -> Any:  # noqa: ANN401 -- any JSON value
    """Without absolute paths: a card must not tell how a machine is arranged."""
    if isinstance(value, dict):
        return {name: portable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item) for item in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def panels(entries: Sequence[Entry], served: Sequence[Measurement]) -> list[chart.Lines | chart.Bars]:
    """The plot: acceptance and loss over updates, acceptance by domain and by position; those that are known."""
    names = sorted({name for one in entries for name in one.scalars if name.startswith("simulated/tau/")}, key=_last)
    lines = [chart.Line(f"simulated, K = {_last(name)}", series(entries, name)) for name in names]
    if served:
        points = [(one.update, one.overall.length) for one in served]
        lines.append(chart.Line(f"in vLLM, K = {served[-1].draft_tokens}", points, marks=True))
    drawn: list[chart.Lines | chart.Bars] = []
    if lines:
        drawn.append(chart.Lines("Acceptance while training", "updates", "tokens per step", lines))
    if losses := series(entries, "training/loss"):
        drawn.append(chart.Lines("Loss", "updates", "loss", [chart.Line("training", _thinned(losses))]))
    if served:
        last = served[-1]
        domains = [chart.Bar(name, tau.length, tau.length_std) for name, tau in last.domains.items()]
        overall = chart.Bar("all", last.overall.length, last.overall.length_std)
        axis = "mean acceptance length; whiskers: standard deviation over requests"
        drawn.append(chart.Bars("In vLLM, by domain", axis, [overall, *domains]))
        positions = [chart.Bar(f"token {at}", share) for at, share in enumerate(last.overall.per_position, 1)]
        drawn.append(chart.Bars("In vLLM, by position", "share of steps that accept it", positions))
    return drawn


def render(card: Mapping[str, Any]) -> str:
    """README.md."""
    target, head, data = card["target"] or {}, card["head"], card.get("data", {})
    gate = "no gate" if head["gate"] == "none" else f"{head['gate']} gate"
    base = target.get("name", "unknown")
    weights = target.get("weights_sha256", {})
    inputs = card.get("inputs", {})
    read = ", ".join(f"`{name}` {digest[:16]}" for name, digest in inputs.items() if name not in weights)
    return _TEXT.format(
        base=base,
        tags="\n".join(f"- {tag}" for tag in TAGS),
        title=f"{base} draft",
        gate=gate,
        quantisation=target.get("quantisation") or "16 bit",
        acceptance=_acceptance(card),
        plot=PLOT,
        config_hash=target.get("config_sha256", "unknown")[:16],
        weight_hashes=", ".join(f"`{name}` {digest[:16]}" for name, digest in weights.items()) or "unknown",
        data=", ".join([*(f"{count:,} {name.replace('_', ' ')}" for name, count in data.items()), read]),
        seeds=", ".join(map(str, card.get("seeds", []))),
        commit=card.get("commit", "unknown"),
        versions=", ".join(f"{name} {version}" for name, version in card.get("versions", {}).items()),
        recipe=json.dumps(card["recipe"], indent=1),
    )


def _acceptance(card: Mapping[str, Any]) -> str:
    if not card["served"]:
        return "Not measured in the engine."
    last = card["served"][-1]
    rows = [("all", last["overall"]), *last["domains"].items()]
    table = ["| domain | acceptance length | ± over requests | requests | steps |", "|---|---|---|---|---|"]
    table += [
        f"| {name} | {tau['length']:.3f} | {_spread(tau)} | {tau['requests']} | {tau['steps']} |" for name, tau in rows
    ]
    shares = ", ".join(f"{share:.1%}" for share in last["overall"]["per_position"])
    how = (
        f"Measured in vLLM with K = {last['draft_tokens']} drafted tokens at temperature {last['temperature']:g}, seed "
        f"{last['seed']}. Acceptance length = 1 + accepted / steps, the target's own token included, every step "
        f"weighing the same.\n\nAccepted at positions 1, 2, ...: {shares} of the steps."
    )
    return "\n".join([how, "", *table])


def _spread(tau: Mapping[str, Any]) -> str:
    return f"{tau['length_std']:.3f}" if tau["requests"] > 1 else "–"


def _last(name: str) -> int:
    return int(name.rsplit("/", 1)[1])


def _thinned(points: list[tuple[int, float]], most: int = 200) -> list[tuple[float, float]]:
    """Means of neighbours, so that a long curve stays a small file and readable."""
    size = -(-len(points) // most)
    groups = [points[at : at + size] for at in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
