# SPDX-License-Identifier: Apache-2.0
"""`aerie bench acceptance`: how many drafted tokens a target accepts, by domain and position, of one or several pairs.

Figures, for each VARIANT: `acceptance_length_VARIANT`, over all prompts, and `acceptance_length_VARIANT_DOMAIN`, each
with `_std`; `acceptance_position_N_VARIANT`, the share of steps that accepted the token at position N, and
`acceptance_rate_VARIANT`. `_std` is the standard error that the choice of prompts leaves (see `standard_error`).
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from aerie.benchmarks import options
from aerie.benchmarks.acceptance.variants import Pair, parse_all
from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.points import Points, Record
from aerie.benchmarks.progress import resumable
from aerie.benchmarks.prompts import Messages, by_domain, render
from aerie.benchmarks.results_file import Provenance, ResultFile, Run
from aerie.draft_models.acceptance import AcceptanceCounts, AcceptanceError, pool
from aerie.draft_models.measure import Acceptance, evaluate
from aerie.draft_models.offline import EngineOptions, OfflineEngine, Sampling, offline_engine

NAME = "acceptance"


class Settings(BaseModel):
    """What is asked of every pair."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    draft_tokens: int = Field(default=4, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    count: int = Field(default=16, ge=1)
    """Prompts of each domain."""
    max_tokens: int = Field(default=256, ge=1)
    seed: int = 0
    prompts: Path | None = None


def slug(domain: str) -> str:
    """A domain as it stands in figures."""
    return re.sub(r"[^a-z0-9]+", "_", domain.lower()).strip("_") or "other"


def record(pair: Pair, domain: str, settings: Settings, acceptance: Acceptance) -> Record:
    """What is kept of one pair and domain."""
    pooled = acceptance.pooled
    return {
        "variant": pair.name,
        "domain": domain,
        "draft_tokens": settings.draft_tokens,
        "temperature": settings.temperature,
        "steps": pooled.steps,
        "accepted": pooled.accepted,
        "drafted": pooled.drafted,
        "histogram": list(pooled.histogram),
        "length": round(pooled.length, 4),
        "rate": round(pooled.rate, 4),
        "positions": [round(share, 4) for share in pooled.per_position],
        "generated_tokens": acceptance.generated,
        "requests": len(acceptance.per_request),
        "histogram_by_request": [list(one.histogram) for one in acceptance.per_request],
    }


def standard_error(requests: Sequence[AcceptanceCounts]) -> float | None:
    """Of a pooled length, for the choice of prompts: that of a ratio estimator, linearised. None for one request.

    Requests are the sampling units: the steps of one answer go well or badly together.
    """
    count, pooled = len(requests), pool(requests)
    if count < 2:
        return None
    ratio = pooled.accepted / pooled.steps
    scatter = sum((one.accepted - ratio * one.steps) ** 2 for one in requests)
    return math.sqrt(count / (count - 1) * scatter) / pooled.steps


def _requests(records: Sequence[Mapping[str, Any]]) -> list[AcceptanceCounts]:
    """Each request's counts; how many were drafted is not kept by request, and no length needs it."""
    return [
        AcceptanceCounts(histogram=histogram, drafted=sum(histogram) * (len(histogram) - 1))
        for one in records
        for histogram in one["histogram_by_request"]
    ]


def _lengths(name: str, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    requests = _requests(records)
    error = standard_error(requests)
    found = {name: pool(requests).length}
    return found if error is None else found | {f"{name}_std": error}


def figures(records: Sequence[Record]) -> dict[str, float]:
    """Flat figures of all variants, from records of every variant and domain."""
    found: dict[str, float] = {}
    for variant in dict.fromkeys(str(one["variant"]) for one in records):
        there: list[Mapping[str, Any]] = [one for one in records if one["variant"] == variant]
        name = variant.replace("-", "_")
        found |= _lengths(f"acceptance_length_{name}", there)
        for one in there:
            found |= _lengths(f"acceptance_length_{name}_{slug(one['domain'])}", [one])
        shares = enumerate(pool(_requests(there)).per_position, 1)
        found |= {f"acceptance_position_{position}_{name}": share for position, share in shares}
        found[f"acceptance_rate_{name}"] = sum(one["accepted"] for one in there) / sum(one["drafted"] for one in there)
    return {name: round(value, 4) for name, value in found.items()}


def _measured(engine: OfflineEngine, chats: Sequence[Messages], pair: Pair, settings: Settings) -> Acceptance:
    tokens = [one.token_ids for one in render(pair.model, chats)]
    for ids in tokens:
        if len(ids) >= engine.longest:
            raise BenchmarkError(
                f"--prompts: a prompt has {len(ids)} tokens, and {pair.model.name} takes {engine.longest} with the "
                "answer; leave out what is longer"
            )
    drawn = [
        Sampling(settings.max_tokens, settings.temperature, seed=settings.seed + index) for index in range(len(tokens))
    ]
    return evaluate(engine, tokens, drawn)


def _pair_records(
    pair: Pair, prompts: Mapping[str, list[Messages]], settings: Settings, points: Points
) -> Iterator[tuple[str, list[Record]]]:
    """Each domain's record, measured or kept; the engine is started for the first that must be measured."""
    from vllm.platforms import current_platform

    asked = EngineOptions(
        model=pair.model,
        draft=pair.draft,
        draft_tokens=settings.draft_tokens,
        seed=settings.seed,
        # On a CPU nothing is gained by compiling, and an engine in this process starts three times as fast.
        in_process=current_platform.is_cpu(),
    )
    with ExitStack() as stack:
        engine: OfflineEngine | None = None

        def measure(domain: str) -> list[Record]:
            nonlocal engine
            engine = engine or stack.enter_context(offline_engine(asked))
            return [record(pair, domain, settings, _measured(engine, prompts[domain], pair, settings))]

        for domain in prompts:
            yield domain, points.kept(f"{pair.name}-{slug(domain)}", partial(measure, domain))


def run(out: Path, variants: Sequence[str], settings: Settings, work: Path) -> None:
    """Measure all pairs and domains that are not kept yet, and write the result; raises BenchmarkError."""
    pairs = parse_all(variants)
    prompts = by_domain(settings.count, settings.seed, settings.prompts)
    inputs = options.inputs(
        prompts=settings.prompts,
        **{f"{pair.name}/{role}": getattr(pair, role) for pair in pairs for role in ("model", "draft")},
    )
    named = {pair.name: {"model": pair.model, "draft": pair.draft} for pair in pairs}
    arguments = options.recorded({"variant": named, **settings.model_dump()})
    points = Points(work, {**arguments, "inputs": dict(inputs)})
    records = list[Record]()
    try:
        with resumable(points, len(pairs) * len(prompts)) as advance:
            for pair in pairs:
                for domain, one in _pair_records(pair, prompts, settings, points):
                    records += one
                    advance(f"{pair.name}: {domain}")
    except AcceptanceError as error:
        raise BenchmarkError(str(error)) from error
    result = ResultFile(
        provenance=Provenance.now(arguments, [settings.seed], inputs),
        runs=[Run(benchmark=NAME, measured=one) for one in records],
        figures=figures(records),
    )
    result.write(out)
    options.show(result.figures)
