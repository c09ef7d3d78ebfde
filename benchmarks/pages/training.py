# SPDX-License-Identifier: Apache-2.0
"""What the page on training a draft says of speed, memory, gates, and targets."""

from aerie.benchmarks.pages.load import Results, source

SPEED, MEMORY = "draft-trainer-speed", "draft-trainer-memory"
GATES, RATES, TARGETS, LIGHT = "draft-gate-study", "draft-gate-rates", "draft-int4-study", "first-light"
GATE_ROWS = {
    "plain": "none",
    "headwise": "head-wise",
    "elementwise": "element-wise",
    "plain_norms": "none, EAGLE-3.1's norms",
    "headwise_norms": "head-wise, norms",
    "elementwise_norms": "element-wise, norms",
}
COLUMNS = {"": "K = 4, greedy", "_t1": "K = 4, T = 1", "_k7": "K = 7, greedy", "_k7_t1": "K = 7, T = 1"}


def speed(results: Results) -> str:
    """The trainer beside speculators."""
    figures = results[SPEED].figures
    return (
        f"At seven steps, this trainer handles {figures['speed_ratio_ttt7']:.1f} ± "
        f"{figures['speed_ratio_ttt7_std']:.1f} times "
        "as many tokens a second as speculators 0.9 on the clinic's\nconsultations, since it drafts only from where "
        "an engine "
        f"would; and {figures['speed_ratio_ttt7_all_supervised']:.1f} ± "
        f"{figures['speed_ratio_ttt7_all_supervised_std']:.1f} "
        "times as many when every token is\nsupervised, so that both do the same work. "
        f"{source(SPEED, results[SPEED])}\n"
    )


def memory(results: Results) -> str:
    """The quadratic term of the peak, both trainers."""
    figures = results[MEMORY].figures
    ours, theirs = (
        [figures[f"quadratic_bytes_{side}_ttt{steps}"] for steps in (1, 7)] for side in ("ours", "speculators")
    )
    return (
        f"The peak of a process grows by {ours[0]:.1f} bytes × L² with one step and {ours[1]:.1f} with seven; "
        "speculators' by "
        f"{theirs[0]:.1f} and {theirs[1]:.0f}.\n{source(MEMORY, results[MEMORY])}\n"
    )


def gates(results: Results) -> str:
    """Acceptance by gate, with and without norms, and what the gate gains."""
    result = results[GATES]
    figures = result.figures
    lines = ["| gate | " + " | ".join(COLUMNS.values()) + " |", "|---|" + "---:|" * len(COLUMNS)]
    for name, said in GATE_ROWS.items():
        cells = [f"{figures[f'tau_{name}{end}']:.2f} ± {figures[f'tau_{name}{end}_std']:.2f}" for end in COLUMNS]
        lines.append(f"| {said} | " + " | ".join(cells) + " |")
    gains = [_gain(figures[f"gain_{name}"], figures[f"gain_{name}_std"]) for name in _gained("elementwise")]
    head = [_gain(figures[f"gain_{name}"], figures[f"gain_{name}_std"]) for name in _gained("headwise")]
    norms = figures["tau_plain_norms"] / figures["tau_plain"] - 1
    said = (
        f"Over no gate the element-wise one gains {gains[0]} at K = 4 and {gains[1]} at K = 7, greedy; with the "
        "norms, which\n"
        f"lift a plain head by {norms:.0%} at K = 4, still {gains[2]} and {gains[3]}. A head-wise gate: {head[0]} and "
        f"{head[1]}, "
        f"with norms\n{head[2]} and {head[3]}. {source(GATES, result)}\n"
    )
    return "\n".join([*lines, "", said])


def _gained(gate: str) -> list[str]:
    return [gate, f"{gate}_k7", f"{gate}_norms", f"{gate}_norms_k7"]


def _gain(value: float, spread: float) -> str:
    return f"{100 * value:+.1f} ± {100 * spread:.1f} %"


def rates(results: Results) -> str:
    """What learning rates make of the gain."""
    figures, result = results[RATES].figures, results[RATES]
    light = results[LIGHT].figures
    head = figures["tau_headwise_lr_4_gate_4"] / figures["tau_headwise_lr_4_gate_1"] - 1
    early = light["acceptance_length_gated"] / light["acceptance_length_plain"] - 1
    return (
        f"Simulated acceptance, one seed, each kind at its best of the rates tried: element-wise over none "
        f"{figures['gain_elementwise_gate_1']:+.0%} with the\ngate at the head's own rate, "
        f"{figures['gain_elementwise_gate_4']:+.0%} at four times that; a head-wise gate changes by {head:+.0%} by "
        "the same "
        f"factor. {source(RATES, result)}\n"
        f"With every kind at the rates that suit the element-wise gate, two epochs give {early:+.0%}. The head that "
        "ships is "
        f"trained at\nthese rates, for six epochs, and reaches {light['acceptance_length']:.2f}. "
        f"{source(LIGHT, results[LIGHT])}\n"
    )


def targets(results: Results) -> str:
    """Heads by the target they learnt on, served on either."""
    result = results[TARGETS]
    figures = result.figures
    lines = ["| served target | head trained on 16 bit | head trained on INT4 |", "|---|---:|---:|"]
    for served, said in {"bf16": "16 bit", "int4": "INT4"}.items():
        cells = [
            f"{figures[f'tau_{served}_{head}']:.2f} ± {figures[f'tau_{served}_{head}_std']:.2f}"
            for head in ("bf16", "int4")
        ]
        lines.append(f"| {said} | " + " | ".join(cells) + " |")
    head = _gain(figures["gain_int4_head"], figures["gain_int4_head_std"])
    policy = _gain(figures["onpolicy_gain"], figures["onpolicy_gain_std"])
    said = (
        f"On the INT4 target a head trained on it gains {head} over one trained on 16 bit; an on-policy epoch in "
        "place of the\n"
        f"last supervised one changes it by {policy}. {source(TARGETS, result)}\n"
    )
    return "\n".join([*lines, "", said])
