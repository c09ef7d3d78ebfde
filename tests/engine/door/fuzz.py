# SPDX-License-Identifier: Apache-2.0
"""What schemathesis makes of our own description, sent to a running server route by route."""

import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema
from schemathesis.generation.case import Case
from schemathesis.generation.meta import CoveragePhaseData
from schemathesis.hooks import HookContext

SECONDS = 120  # per request, on a loaded machine: longer is a hang
SHARE = {
    "/v1/chat/completions": 12,
    "/v1/completions": 8,
    "/v1/responses": 24,
    "/v1/messages": 8,
    "/v1/messages/count_tokens": 8,
    "/tokenize": 4,
}
"""One in so many of the coverage phase's cases, where there are hundreds: always the same ones."""
EXAMPLES = 12
MOST_TOKENS = 4
LENGTHS = {
    "/v1/chat/completions": ("max_tokens", "max_completion_tokens"),
    "/v1/completions": ("max_tokens",),
    "/v1/responses": ("max_output_tokens",),
    "/v1/messages": ("max_tokens",),
}


@dataclass
class Found:
    """What one route answered."""

    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)


class Fuzzer:
    """Positive and negative data for each route of a server's `/openapi.json`, the same in every run."""

    def __init__(self, address: str, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        wanted = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "unsupported_method")
        settings: dict[str, Any] = {
            "seed": 1,
            "base-url": address,
            "headers": headers,
            "request-timeout": SECONDS,
            "continue-on-failure": True,
            "generation": {
                "mode": "all",
                "max-examples": EXAMPLES,
                "deterministic": True,
                "database": "none",
                "no-shrink": True,
                "with-security-parameters": False,
            },
            "phases": {"stateful": {"enabled": False}},
            "checks": {"enabled": False, **{name: {"enabled": True} for name in wanted}},
        }
        answer = httpx.get(f"{address}/openapi.json", headers=headers, timeout=SECONDS, trust_env=False)
        answer.raise_for_status()
        config = SchemathesisConfig.from_dict(settings)
        self.schema = schemathesis.openapi.from_dict(answer.json(), config=config)
        self.schema.hook(filter_case)
        self.schema.hook(map_case)

    def run(self, path: str) -> Found:
        """Send one route everything."""
        found = Found()
        for event in from_schema(self.schema.include(path=path)).execute():
            if isinstance(event, events.NonFatalError | events.FatalError):
                found.failures.append(repr(event)[:500])
            if not isinstance(event, events.ScenarioFinished):
                continue
            for interaction in event.recorder.interactions.values():
                if (response := interaction.response) is not None:
                    found.statuses[response.status_code] += 1
                    if response.status_code >= 400:
                        found.refusals.append(response.text)
            for case, checks in event.recorder.checks.items():
                body = repr(event.recorder.cases[case].value.body)[:1000]
                found.failures += [
                    f"{check.name}: {failed.failure.title} {failed.failure.message[:300]} {body}"
                    for check in checks
                    if (failed := check.failure_info) is not None
                ]
        return found


def filter_case(context: HookContext, case: Case[Any]) -> bool:
    """A share of the coverage phase's cases."""
    share = SHARE.get(case.operation.path, 1)
    coverage = case.meta is not None and isinstance(case.meta.phase.data, CoveragePhaseData)
    return not coverage or case.method != "POST" or zlib.crc32(repr(case.body).encode()) % share == 0


def map_case(context: HookContext, case: Case[Any]) -> Case[Any]:
    """Short answers: what is tested is whether they come, and the tiny model is in no hurry."""
    names = LENGTHS.get(case.operation.path, ())
    if isinstance(case.body, dict) and names:
        asked = [name for name in names if name in case.body] or names[:1]
        for name in asked:
            value = case.body.get(name, MOST_TOKENS)
            if type(value) is int and value > 0:
                case.body[name] = min(value, MOST_TOKENS)
    return case
