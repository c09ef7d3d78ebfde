#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Every measurement behind benchmarks/results/first-light.json, in order. Run it from the repository's root on a machine
# that does nothing else; the speed-up comes first, and says how busy the machine was with other things.
set -eu
export PYTHONSAFEPATH=1
PYTHON=${PYTHON:-.venv/bin/python}
PARTS=${PARTS:-runs/first-light}
mkdir -p "$PARTS"

$PYTHON -m aerie.benchmarks.serving.first_light --out "$PARTS/speedup.json"
$PYTHON -m aerie.benchmarks.acceptance.evaluate --out "$PARTS/acceptance.json"
$PYTHON -m aerie.benchmarks.acceptance.gate_heads --out runs/gate-heads
$PYTHON -m aerie.benchmarks.acceptance.gates runs/gate-heads/*-? --out "$PARTS/gates.json"
$PYTHON -m aerie.benchmarks.quality.parse_rate --out "$PARTS/parse_rate.json"
$PYTHON -m aerie.benchmarks.losslessness.greedy --out "$PARTS/greedy.json"
$PYTHON -m aerie.benchmarks.losslessness.temperature --out "$PARTS/temperature.json"
$PYTHON -m aerie.benchmarks.report.merge "$PARTS"/*.json --out benchmarks/results/first-light.json
$PYTHON docs/render_figures.py
