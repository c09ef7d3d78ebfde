# SPDX-License-Identifier: Apache-2.0
"""The benchmark's check of int4_gemm and its search for cuts, on the kernel itself, interpreted: in float16."""

from collections.abc import Callable, Sequence
from dataclasses import asdict

import pytest
import torch

from aerie.benchmarks.kernels.gpu import linear, tune
from aerie.benchmarks.kernels.gpu.shapes import Shape
from aerie.benchmarks.kernels.gpu.ways import Weight
from aerie.benchmarks.kernels.timing import Budget, Call
from aerie.kernels.int4_gemm.tuning import Cut

SMALL = Shape(256, 128)
WHOLE, HALF = Cut(64, 32, 1, 4, 1), Cut(128, 32, 1, 4, 1)
TOO_FEW_ROWS = Cut(64, 16, 2, 4, 1)
"""Its tile has fewer rows than the bucket, which a split of K does not allow."""

pytestmark = pytest.mark.usefixtures("interpreter")


class Counted:
    """A timer that runs each call once and says that earlier ones took longer."""

    def __init__(self) -> None:
        self.us = 100.0

    def prepare(self, calls: Sequence[Call]) -> Callable[[], float]:
        for call in calls:
            call()
        self.us -= 10
        us = self.us
        return lambda: us


def test_the_check_goes_through_the_kernel() -> None:
    torch.manual_seed(0)
    (record,) = linear.check(SMALL, (1, 3), torch.float16, "cpu", {"ours": linear.BUILDS["ours"]})
    assert record["kind"] == "error"
    assert isinstance(record["errors"], list)
    assert all(isinstance(error, float) and 0 < error < 1e-3 for error in record["errors"])


def test_the_search_times_cuts_that_are_right_and_refuses_others() -> None:
    torch.manual_seed(0)
    weight = Weight.random(SMALL, torch.float16, "cpu")
    cuts = [WHOLE, HALF, TOO_FEW_ROWS]
    records = list(tune.search(SMALL, 32, cuts, Counted(), Budget(600), weight, copies=2))
    assert [record["kind"] for record in records] == ["cut", "cut", "refused"]
    assert records[0] == {"kind": "cut", "case": "256x128", "bucket": "32", "cut": asdict(WHOLE), "us": 90.0}
    assert str(TOO_FEW_ROWS) in str(records[2]["way"])
    assert tune.best(records, SMALL) == {"32": HALF}
    assert list(tune.search(SMALL, 32, cuts, Counted(), Budget(0), weight, copies=2)) == []
