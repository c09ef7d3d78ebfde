# SPDX-License-Identifier: Apache-2.0
"""What is left of vLLM's tracebacks."""

import io
import logging

import pytest
from vllm.exceptions import VLLMValidationError

from aerie.server.engine_log import shorten


@pytest.mark.parametrize(
    ("name", "error", "lines"),
    [
        ("vllm.entrypoints.openai.chat_completion.serving", ValueError("no such\ntoken"), 1),
        ("vllm.entrypoints.openai.completion.serving", VLLMValidationError("no such field"), 1),
        ("vllm.tool_parsers.some_parser", KeyError("name"), 1),
        ("vllm.entrypoints.openai.chat_completion.serving", IndexError("a fault of vLLM's"), 4),
        ("vllm.v1.engine.core", ValueError("the engine failed"), 4),
    ],
)
def test_what_was_refused_is_one_line_and_what_failed_is_a_traceback(name: str, error: Exception, lines: int) -> None:
    root, written = logging.Logger("vllm"), io.StringIO()
    root.addHandler(logging.StreamHandler(written))
    shorten(root)
    shorten(root)
    logger = logging.Logger(name)
    logger.parent = root
    try:
        raise error
    except Exception:
        logger.exception("Error in %s.", "a stream")
    told = written.getvalue().splitlines()
    assert len(told) >= lines if lines > 1 else len(told) == 1
    assert told[0].startswith("Error in a stream.")
    assert repr(error) in told[0] or lines > 1
    assert len(root.handlers[0].filters) == 1
