# SPDX-License-Identifier: Apache-2.0
"""From what `aerie bench serving` was told to variants and prompts; what cannot be meant is refused by its option."""

import random
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
from pydantic import ByteSize, TypeAdapter, ValidationError

from aerie.benchmarks.errors import BenchmarkError
from aerie.benchmarks.options import DEMO_DRAFT, DEMO_MODEL
from aerie.benchmarks.prompts import Prompt, PromptsError, held_out, read_messages, render
from aerie.benchmarks.serving.load import LONGEST, LONGEST_PROMPT, SHORTEST_PROMPT
from aerie.benchmarks.serving.serve_options import check, told, told_k
from aerie.benchmarks.serving.sweep import SweepOptions
from aerie.benchmarks.serving.variants import BASELINE, Variant
from aerie.server.errors import BadOption
from aerie.server.plan import CPU_KV_CACHE_BYTES, device

CLINIC = "clinic"
DECIMAL = re.compile(r"\d+(\.\d*)?")
NAME = re.compile(r"[a-z][a-z0-9_-]*")
TAKEN = re.compile(r"[tc][0-9_]+|std")
"""Names of scenarios that the names of figures could be mistaken with."""
DEFAULT_K = 4
URL = re.compile(r"https?://\S+")
PROCESSES_BYTES = int(1.6 * 2**30)
"""Resident memory of an `aerie serve` on a CPU apart from its weights and KV cache: three processes with torch."""
GPU_SHARE = 0.9


def numbers(option: str, texts: Iterable[str], least: int) -> tuple[int, ...]:
    """Whole numbers from an option that is repeated, lists them by commas, or both; ascending.

    Raises:
        BadOption: one is no whole number, or too small.
    """
    found = set()
    for word in (word.strip() for text in texts for word in text.split(",")):
        if not word.isdecimal() or int(word) < least:
            raise BadOption(option, f"{word or 'nothing'} is no whole number from {least}", "give them as 1,2,4")
        found.add(int(word))
    return tuple(sorted(found))


def decimals(option: str, texts: Iterable[str]) -> tuple[float, ...]:
    """Numbers from 0, given in the same ways; in the order in which they were given.

    Raises:
        BadOption: one is no number, or below 0.
    """
    found: dict[float, None] = {}
    for word in (word.strip() for text in texts for word in text.split(",")):
        if not DECIMAL.fullmatch(word):
            raise BadOption(option, f"{word or 'nothing'} is no number from 0", "give them as 0,0.7")
        found[float(word)] = None
    return tuple(found)


def named(option: str, text: str, what: str) -> tuple[str, str]:
    """Both sides of `NAME=VALUE`.

    Raises:
        BadOption: it is not of that form.
    """
    name, found, value = text.partition("=")
    if not found or not value.strip() or not NAME.fullmatch(name):
        problem = f"{text} is not NAME={what}"
        raise BadOption(option, problem, "begin the name with a small letter, and go on with those, digits, - and _")
    return name, value.strip()


def draft_beside(model: Path, draft: Path | None) -> Path | None:
    """The draft where none is named: the demo's for the demo, else the folder `draft` in the model's."""
    if draft is not None:
        return draft
    if model.resolve() == DEMO_MODEL.resolve():
        return DEMO_DRAFT
    return model / "draft" if (model / "draft").is_dir() else None


@dataclass(frozen=True)
class Servers:
    """What shapes the servers."""

    model: Path
    draft: Path | None
    draft_tokens: tuple[int, ...] | None
    """K of the variants that come by themselves; `None` when it was not given."""
    variants: tuple[str, ...]
    model_name: str | None
    serve_options: tuple[str, ...]

    def all(self) -> list[Variant]:
        """The variants in the order of the table: those that come by themselves, then the named.

        Raises:
            BadOption: two have one name, or one is neither a URL nor options of a server that would start.
        """
        made = [self._named(text) for text in self.variants]
        if self.draft_tokens is not None or not made or any(one.url is None for one in made):
            made = [*self._own(), *made]
        seen = set()
        for one in made:
            if (name := one.name.replace("-", "_")) in seen:
                own = "; `none` and kN come by themselves" if name == BASELINE or re.fullmatch(r"k\d+", name) else ""
                raise BadOption("--variant", f"{one.name} is named twice{own}", "give each its own name")
            seen.add(name)
            if one.url is None:
                check(one.name, one.arguments)
        return self._sharing(made)

    def _own(self) -> list[Variant]:
        """No speculation, and the draft with each K; beside named servers a model without a draft has no kN."""
        draft = draft_beside(self.model, self.draft)
        ks = self.draft_tokens
        if ks is None:
            ks = () if draft is None and self.variants else (DEFAULT_K,)
        if draft is None and any(ks):
            problem = f"no draft is named, and {self.model} has none in the folder `draft`"
            raise BadOption("--draft", problem, "name one, or measure without by --draft-tokens 0")
        plain = Variant(name=BASELINE, arguments=(*self._shared, "--no-draft"), draft_tokens=0)
        drafting = ("--draft", str(draft))
        return [plain] + [
            Variant(name=f"k{k}", arguments=(*self._shared, *drafting, "--draft-tokens", str(k)), draft_tokens=k)
            for k in ks
            if k > 0
        ]

    @property
    def _shared(self) -> tuple[str, ...]:
        return ("--model", str(self.model), *self.serve_options)

    def _named(self, text: str) -> Variant:
        name, value = named("--variant", text, "URL or NAME=OPTIONS")
        if URL.fullmatch(value):
            url = value.rstrip("/").removesuffix("/v1")
            return Variant(name=name, url=url, served_model=self.model_name)
        try:
            words = shlex.split(value)
        except ValueError as error:
            raise BadOption("--variant", f"{name}: {error}", "quote it as a shell would") from None
        if not words or not words[0].startswith("--"):
            problem = f"{name} is {value}, neither http://HOST:PORT nor options"
            raise BadOption("--variant", problem, "such as --variant 'k2=--draft DRAFT --draft-tokens 2'")
        given = {word.partition("=")[0] for word in words}
        shared = self.serve_options if "--model" in given else self._shared
        return Variant(name=name, arguments=(*shared, *words), draft_tokens=told_k(words))

    def _sharing(self, variants: list[Variant]) -> list[Variant]:
        """On a GPU the servers get an equal share of its memory, unless the options say it."""
        own = sum(one.url is None for one in variants)
        if device() == "cpu" or own < 2 or any("gpu-memory-utilization" in word for word in self.serve_options):
            return variants
        share = ("--gpu-memory-utilization", f"{GPU_SHARE / own:.3f}")
        return [
            one if one.url is not None else one.model_copy(update={"arguments": (*share, *one.arguments)})
            for one in variants
        ]


def check_memory(variants: Sequence[Variant], weights: int) -> None:
    """Refuse to start servers that do not fit beside each other; each has `weights` bytes of checkpoints.

    On a GPU vLLM itself refuses.

    Raises:
        BenchmarkError: they do not.
    """
    own = [one for one in variants if one.url is None]
    if device() != "cpu":
        return
    needed = sum(PROCESSES_BYTES + weights + _kv_cache(one.arguments) for one in own)
    free = int(psutil.virtual_memory().available)
    if needed > free:
        sizes = f"{needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
        fix = "compare fewer at a time, or lower --kv-cache-memory by --serve-option"
        raise BenchmarkError(f"{len(own)} servers beside each other need about {sizes}: {fix}")


def _kv_cache(arguments: Sequence[str]) -> int:
    value = told(arguments, "--kv-cache-memory")
    try:
        return CPU_KV_CACHE_BYTES if value is None else int(TypeAdapter(ByteSize).validate_python(value))
    except ValidationError:
        return CPU_KV_CACHE_BYTES  # `aerie serve` refuses it


def scenario_files(texts: Sequence[str]) -> dict[str, Path | None]:
    """The file of each scenario by its name; the clinic's held-out consultations have none.

    Raises:
        BadOption: a name is taken, or there is no such file.
    """
    files: dict[str, Path | None] = {}
    for text in texts:
        if "=" in text:
            name, value = named("--prompts", text, "FILE.jsonl")
        else:
            name, value = re.sub(r"[^a-z0-9_-]+|^[^a-z]+", "-", Path(text).stem.lower()).strip("-") or "prompts", text
        if name in files or TAKEN.fullmatch(name):
            raise BadOption("--prompts", f"the name {name} is taken", "give another")
        if not Path(value).is_file():
            raise BadOption("--prompts", f"{value} is not a file", "name a file of prompts")
        files[name] = Path(value)
    return files or {CLINIC: None}


@dataclass(frozen=True)
class Pool:
    """The prompts of a scenario, and how many of its file the load generator does not take."""

    prompts: list[Prompt]
    left_out: int


def pool(path: Path | None, options: SweepOptions) -> Pool:
    """A scenario's prompts; those of a file in an order that the seed draws, since many are sorted by category.

    Raises:
        PromptsError: there is none.
    """
    if path is None:
        chats = held_out(options.prompts_needed, options.seed)
    else:
        chats = read_messages(path)
        random.Random(options.seed).shuffle(chats)
    rendered = render(options.model, chats[: options.prompts_needed]) if chats else []
    most = min(LONGEST_PROMPT, LONGEST - options.max_tokens)
    kept = [one for one in rendered if SHORTEST_PROMPT <= len(one.token_ids) <= most]
    if not kept:
        which = f"none of {SHORTEST_PROMPT} to {most} tokens" if rendered else "no prompts"
        raise PromptsError(f"{path or CLINIC} has {which}; name a file that has some")
    return Pool(kept, len(rendered) - len(kept))


def pools(files: Mapping[str, Path | None], options: SweepOptions) -> dict[str, Pool]:
    """Of every scenario."""
    return {name: pool(path, options) for name, path in files.items()}
