# SPDX-License-Identifier: Apache-2.0
"""Whether a series of measurements grows: a robust slope, its confidence interval, and a verdict against a bound.

The slope is Theil and Sen's: the median of the slopes of all pairs of points. A quarter of the points may be anything
(a buffer that doubles, a pool that is given back) and hardly move it, where least squares would follow each of them.
The interval is Sen's, from Kendall's rank statistic (P. K. Sen, 1968, section 3), without correction for ties, which
would narrow it.

"Flat" must be shown, it is not what is left when nothing else is: the whole interval lies below the bound. "Growing" is
the whole interval above it. What is neither is undecided: measure longer.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

LEVEL = 0.95
FEWEST = 6
"""Points below which Sen's interval at this level is wider than the data."""
Verdict = Literal["flat", "growing", "undecided"]


@dataclass(frozen=True)
class Trend:
    """Growth per unit of x, and between what it lies with `LEVEL`."""

    slope: float
    low: float
    high: float

    def verdict(self, bound: float) -> Verdict:
        """Against the growth that would matter."""
        return "flat" if self.high < bound else "growing" if self.low > bound else "undecided"


def trend(x: Sequence[float], y: Sequence[float]) -> Trend:
    """Of points in any order; x must not be all the same. Without `FEWEST` points the interval is everything."""
    slopes = sorted((y1 - y0) / (x1 - x0) for (x0, y0), (x1, y1) in combinations(zip(x, y, strict=True), 2) if x1 != x0)
    slope, count = statistics.median(slopes), len(x)
    if count < FEWEST:
        return Trend(slope, -math.inf, math.inf)
    spread = math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    reach = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2) * spread
    low = max(0, math.floor((len(slopes) - reach) / 2))
    high = min(len(slopes) - 1, math.ceil((len(slopes) + reach) / 2))
    return Trend(slope, slopes[low], slopes[high])
