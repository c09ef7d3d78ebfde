# SPDX-License-Identifier: Apache-2.0
from xml.etree import ElementTree

import pytest
from openai.types.chat import ChatCompletionChunk

from aerie.benchmarks.report.picture import draw
from aerie.benchmarks.report.transcript import TranscriptError, origins, read_stream, transcript
from aerie.benchmarks.results_file import Provenance, ResultFile, Run

STATISTICS = {"acceptance_histogram": [1, 0, 1], "num_draft_tokens": 4, "per_step_accepted": [2, 0]}


def chunk(tokens: list[str], **extra: object) -> ChatCompletionChunk:
    content = [{"token": token, "logprob": 0.0, "top_logprobs": []} for token in tokens]
    choices = [{"index": 0, "delta": {}, "logprobs": {"content": content}}] if tokens else []
    return ChatCompletionChunk.model_validate(
        {"id": "x", "created": 0, "model": "m", "object": "chat.completion.chunk", "choices": choices, **extra}
    )


def test_tokens_are_told_apart_by_the_steps_that_made_them() -> None:
    assert origins([2, 0], 5) == ["main", "draft", "draft", "main", "main"]
    assert origins([2], 3) == ["main", "draft", "draft"]
    with pytest.raises(TranscriptError):
        origins([0], 3)


def test_stream_gives_tokens_and_the_last_chunks_statistics() -> None:
    chunks = [chunk(["a"]), chunk(["b", "c"]), chunk([], metrics={"speculative_decoding": STATISTICS})]
    tokens, statistics = read_stream(chunks)
    assert (tokens, statistics) == (["a", "b", "c"], STATISTICS)


def test_without_statistics_of_each_step_the_fix_is_named() -> None:
    with pytest.raises(TranscriptError, match="--speculation-statistics detailed"):
        transcript(["a"], {}, 1.0)


def test_picture_is_svg_that_fetches_nothing() -> None:
    told = transcript(["<think>", "one", " two", " three", "<|im_end|>"], STATISTICS, 1.0)
    figures = {"acceptance_length": 2.25, "speedup_c1": 1.5, "speedup_c1_std": 0.125}
    nowhere = Provenance(commit="abc", versions={}, arguments={}, seeds=[], inputs={}, machine={})
    results = ResultFile(provenance=nowhere, runs=[Run(benchmark="x", measured={})], figures=figures)
    svg = draw("clinic-demo", "Why?", told, results)
    ElementTree.fromstring(svg)
    assert "three" in svg
    assert "2.25" in svg
    assert "im_end" not in svg
    assert "url(http" not in svg
    assert "@font-face" not in svg
