# SPDX-License-Identifier: Apache-2.0
"""What a sweep compares: servers that it starts itself with options of their own, or addresses that it is given."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import httpx
from pydantic import BaseModel, ConfigDict, StringConstraints, model_validator

from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.serving.processes import (
    NO_PROBES,
    READY_TIMEOUT_S,
    Server,
    ServerError,
    free_port,
    launched_server,
    serve_command,
    tail,
    wait_ready,
)

BASELINE = "none"
"""The variant that speed-ups are over."""
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]*$")]
TIMEOUT_S = 10.0


class VariantError(BenchmarkError):
    """A server that is named does not answer, or serves another model."""


class Variant(BaseModel):
    """One server of a comparison: an `aerie serve` to start with these arguments, or one that runs at `url`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    arguments: tuple[str, ...] = ()
    url: str | None = None
    served_model: str | None = None
    """For a URL: what its server calls the model; the first one it lists without."""
    draft_tokens: int | None = None
    """K; 0 without speculation, `None` where it is unknown or changes."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.url is not None and self.arguments:
            raise ValueError("a variant has arguments or a URL, not both")
        return self


@dataclass(frozen=True)
class Remote:
    """A server that runs already, perhaps elsewhere; its processes are not ours to look into."""

    name: str
    url: str
    served_model: str

    def cpu_seconds(self) -> float | None:
        """Unknown."""
        return None

    def halted(self) -> AbstractContextManager[None]:
        """It is not ours to halt."""
        return nullcontext()


def listed_models(url: str) -> list[str]:
    """The names of the models that the server at `url` lists; raises VariantError when it does not answer."""
    key = os.environ.get("OPENAI_API_KEY")  # the load generator sends it too
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(f"{url}/v1/models", headers=headers, timeout=TIMEOUT_S, trust_env=False)
        answer.raise_for_status()
        return [str(model["id"]) for model in answer.json()["data"]]
    except (httpx.HTTPError, httpx.InvalidURL, KeyError, TypeError, ValueError) as error:
        raise VariantError(f"{url} lists no models ({error}); start the server, or correct its address") from error


def connect(variant: Variant) -> Remote:
    """The running server of a variant with a URL.

    Raises:
        VariantError: it does not answer, or has no model of that name.
    """
    if variant.url is None:
        raise ValueError(f"{variant.name} has no URL")
    models = listed_models(variant.url)
    if not models:
        raise VariantError(f"{variant.name}: the server at {variant.url} lists no model")
    served = variant.served_model or models[0]
    if served not in models:
        problem = f"the server at {variant.url} has no model {served}"
        raise VariantError(f"{variant.name}: {problem}; it has {', '.join(models)}")
    return Remote(variant.name, variant.url, served)


@contextmanager
def running(
    variants: Sequence[Variant], logs: Path, environment: Mapping[str, str] | None = None
) -> Iterator[dict[str, Server | Remote]]:
    """The servers of all variants, by name, until the block ends. Addresses are tried before anything is started.

    As many servers start at a time as there are cores: a start keeps one busy.
    """
    servers: dict[str, Server | Remote] = {one.name: connect(one) for one in variants if one.url is not None}
    own = [one for one in variants if one.url is None]
    with ExitStack() as stack:
        at_once = os.cpu_count() or 1
        for first in range(0, len(own), at_once):
            together = own[first : first + at_once]
            starting = [stack.enter_context(_launched(one, logs, environment or {})) for one in together]
            for server in starting:
                _wait(server)
                servers[server.name] = server
        yield servers


def _wait(server: Server) -> None:
    try:
        wait_ready(server, READY_TIMEOUT_S)
    except ServerError as error:
        # The last line is the reason when an option is refused, and the end of a traceback otherwise.
        raise VariantError(
            f"{server.name} did not start: {tail(server.log, 1)}; all of it is in {server.log}"
        ) from error


@contextmanager
def _launched(variant: Variant, logs: Path, environment: Mapping[str, str]) -> Iterator[Server]:
    port = free_port()
    command = serve_command(port, (*NO_PROBES, *variant.arguments))
    with launched_server(variant.name, command, port, logs / f"{variant.name}.log", environment) as server:
        yield server
