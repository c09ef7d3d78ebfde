# SPDX-License-Identifier: Apache-2.0
"""A two-sample test on the first tokens of many samples, with its power.

Samples are arrays [n, L]: n draws for one prompt, their first L tokens. Columns are compared by total variation,
TV(p, q) = 1/2 sum |p - q|; the statistic is its mean over columns and prompts. Under "both engines sample alike" draws
of one prompt can change places between the engines, which gives the statistic's null distribution exactly
(a permutation test: no assumption about its form).

N: samples of both engines together · n: of one · L: tokens per sample
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

Samples_nL = NDArray[np.int64]
PERMUTATIONS = 500
REPEATS = 200
LEAKS = (0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5)


class TotalVariationTest(BaseModel):
    """The outcome: reject "both sample alike" where `p_value` is below `level`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    statistic: float
    null_mean: float
    critical: float
    p_value: float
    level: float
    detectable: float | None
    """Smallest true mean TV, of those tried, that this test finds with probability `power`; None: none of them."""
    detectable_leak: float | None
    """The share of tokens that a faulty sampler replaces (see `leak`) at that distance."""
    power: float


def total_variation(first_n: NDArray[np.int64], second_n: NDArray[np.int64]) -> float:
    """TV between the empirical distributions of two columns of equal length."""
    size = int(max(first_n.max(), second_n.max())) + 1
    difference = np.bincount(first_n, minlength=size) - np.bincount(second_n, minlength=size)
    return float(np.abs(difference).sum()) / (2 * len(first_n))


def mean_total_variation(first: Samples_nL, second: Samples_nL) -> float:
    """Mean TV over columns."""
    return float(np.mean([total_variation(a_n, b_n) for a_n, b_n in zip(first.T, second.T, strict=True)]))


def compact(*samples: Samples_nL) -> list[Samples_nL]:
    """The same samples with token ids replaced by small numbers, so that counting is cheap."""
    _, codes = np.unique(np.concatenate(samples), return_inverse=True)
    joined = codes.reshape(-1, samples[0].shape[1])
    return np.split(joined, np.cumsum([len(one) for one in samples])[:-1])


def null_statistics(
    firsts: Sequence[Samples_nL], seconds: Sequence[Samples_nL], permutations: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """The statistic under permutations of each prompt's samples between the two sides."""
    pooled_NL = [np.concatenate(pair) for pair in zip(firsts, seconds, strict=True)]
    values = np.zeros(permutations)
    for index in range(permutations):
        shuffled = (rng.permutation(one) for one in pooled_NL)
        values[index] = np.mean([mean_total_variation(*np.split(one, 2)) for one in shuffled])
    return values


def leak(samples: Samples_nL, share: float, rng: np.random.Generator) -> tuple[Samples_nL, float]:
    """Samples as a faulty sampler would draw them, and how far from `samples` that truly is.

    With probability `share` a token is replaced by its column's most frequent one, as when drafted tokens are accepted
    too readily; the true TV of a column is then share * (1 - frequency of that token).
    """
    modes_L = np.array([np.bincount(column_n).argmax() for column_n in samples.T])
    true = share * float(np.mean(samples != modes_L))
    return np.where(rng.random(samples.shape) < share, modes_L, samples), true


def detectable(
    baselines: Sequence[Samples_nL], critical: float, power: float, rng: np.random.Generator, repeats: int = REPEATS
) -> tuple[float | None, float | None]:
    """The smallest leak that is found, as a true mean TV and as a share of tokens.

    Found: its statistic exceeds `critical` in at least `power` of simulated experiments.
    """
    for share in LEAKS:
        found, true = 0, 0.0
        for _ in range(repeats):
            values, trues = [], []
            for samples in baselines:
                first = samples[rng.integers(len(samples), size=len(samples))]
                second = samples[rng.integers(len(samples), size=len(samples))]
                leaked, distance = leak(second, share, rng)
                values.append(mean_total_variation(first, leaked))
                trues.append(distance)
            found += float(np.mean(values)) > critical
            true += float(np.mean(trues)) / repeats
        if found >= power * repeats:
            return round(true, 4), share
    return None, None


def compare(
    firsts: Sequence[Samples_nL],
    seconds: Sequence[Samples_nL],
    seed: int,
    level: float = 0.01,
    power: float = 0.95,
    permutations: int = PERMUTATIONS,
) -> TotalVariationTest:
    """Test whether two engines sample alike, by prompt; `firsts` is the one without speculation."""
    rng = np.random.default_rng(seed)
    pairs = [compact(*pair) for pair in zip(firsts, seconds, strict=True)]
    plain, drafted = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    statistic = float(np.mean([mean_total_variation(*pair) for pair in pairs]))
    null = null_statistics(plain, drafted, permutations, rng)
    critical = float(np.quantile(null, 1 - level))
    distance, share = detectable(plain, critical, power, rng)
    return TotalVariationTest(
        statistic=round(statistic, 5),
        null_mean=round(float(null.mean()), 5),
        critical=round(critical, 5),
        p_value=round((1 + int((null >= statistic).sum())) / (1 + permutations), 5),
        level=level,
        detectable=distance,
        detectable_leak=share,
        power=power,
    )
