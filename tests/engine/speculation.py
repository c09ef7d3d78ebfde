# SPDX-License-Identifier: Apache-2.0
"""The identities that the speculation statistics of one answer obey."""

from collections.abc import Mapping
from typing import Any

import pytest


def check_statistics(metrics: Mapping[str, Any], tokens: int, draft_tokens: int) -> None:
    """Of an answer of so many tokens, drafted at most `draft_tokens` a step."""
    told = metrics["speculative_decoding"]
    histogram = told["acceptance_histogram"]
    assert len(histogram) == told["num_spec_tokens"] + 1 == draft_tokens + 1
    assert sum(histogram) == told["num_spec_steps"] > 0
    accepted = sum(length * steps for length, steps in enumerate(histogram))
    assert accepted == told["num_accepted_draft_tokens"] <= told["num_draft_tokens"]
    assert told["num_draft_tokens"] <= draft_tokens * told["num_spec_steps"]
    assert told["mean_acceptance_length"] == pytest.approx(1 + accepted / told["num_spec_steps"])
    assert told["draft_acceptance_rate"] == pytest.approx(accepted / told["num_draft_tokens"])
    # The first token comes from the prompt; the last step may overshoot the limit.
    assert tokens - 1 <= told["num_spec_steps"] + accepted <= tokens + draft_tokens
