# SPDX-License-Identifier: Apache-2.0
# `make help` lists the targets. Everything runs in one virtual environment, made from the locks in requirements/.

VENV ?= .venv
BASE_PYTHON ?= python3.11
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed
ORACLE := .venv-oracle
CLIENTS := .venv-clients

# The pin of torch carries "+cpu", so the CUDA build of the Python Package Index never satisfies it.
TORCH := $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements/cpu.lock)
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

# Starting an engine keeps one core busy. The tests of a file stay together, because they share an engine.
TEST_PROCESSES ?= 2

# The repository root on sys.path would make our `kernels` folder shadow the package that transformers probes for.
export PYTHONSAFEPATH := 1

.DEFAULT_GOAL := help
.PHONY: help setup serve test check soak format demo oracle clients lock

help: ## List the targets.
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

setup: $(STAMP) ## Make the virtual environment; runs again only when a lock or the packaging changes.

$(STAMP): requirements/cpu.lock requirements/dev.lock pyproject.toml
	@command -v $(BASE_PYTHON) >/dev/null || { echo "Python 3.11 is needed; BASE_PYTHON=PATH names one"; exit 1; }
	$(BASE_PYTHON) -m venv $(VENV)
	$(PIP) install --no-deps $(TORCH) || { \
	    echo "$(TORCH) is not in the configured indexes: trying PyTorch's"; \
	    $(PIP) install --no-deps --index-url $(TORCH_CPU_INDEX) $(TORCH); }
	$(PIP) install --no-deps --requirement requirements/cpu.lock --requirement requirements/dev.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	touch $@

serve: setup ## Serve the shipped demo on http://127.0.0.1:8000; ARGS="--port 9000" and the like are passed on.
	@# At a terminal the server gets a process group of its own: Ctrl-C then reaches it alone, and make sees its status 0
	@# instead of dying of the signal itself.
	@if [ -t 0 ]; then set -m; $(VENV)/bin/aerie serve $(ARGS); exit $$?; fi; exec $(VENV)/bin/aerie serve $(ARGS)

test: setup ## Run every test; ARGS="-k server" and the like are passed on.
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(ARGS)

check: setup ## Lint, formatting and types, tests included.
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy

format: setup ## Format, and mend what the linter can.
	$(PYTHON) -m ruff check --fix-only
	$(PYTHON) -m ruff format

soak: setup ## Look for leaks: the demo under a mixed load for twenty minutes, then a server with a planted one.
	$(PYTHON) -m aerie.benchmarks.serving.soak --out benchmarks/results/server-soak.json $(ARGS)

demo: setup ## Rebuild the shipped checkpoint from nothing: data, main model, INT4, draft head.
	$(PYTHON) -m aerie.trainer.demo
	$(PYTHON) -m aerie.benchmarks.acceptance.evaluate --out runs/clinic-demo/acceptance.json
	$(PYTHON) -m aerie.benchmarks.report.card --results runs/clinic-demo/acceptance.json

oracle: $(ORACLE)/.installed ## Make .venv-oracle, with the speculators that the trainer is compared with.

# Its packages come first on sys.path, then those of our own environment, our editable install among them.
$(ORACLE)/.installed: requirements/oracle.lock | $(STAMP)
	$(BASE_PYTHON) -m venv --clear $(ORACLE)
	$(ORACLE)/bin/python -m pip --disable-pip-version-check install --no-deps --requirement $<
	echo "import site; site.addsitedir('$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
	    > $$($(ORACLE)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/aerie.pth
	touch $@

clients: $(CLIENTS)/.installed ## Make .venv-clients, with the clients of other makers; needs npm. The tests then run them.

$(CLIENTS)/.installed: requirements/clients.lock tests/engine/clients/package-lock.json
	$(BASE_PYTHON) -m venv --clear $(CLIENTS)
	$(CLIENTS)/bin/python -m pip --disable-pip-version-check install --no-deps --requirement $<
	cp tests/engine/clients/package.json tests/engine/clients/package-lock.json $(CLIENTS)
	npm ci --prefix $(CLIENTS) --ignore-scripts --no-audit --no-fund
	touch $@

# uv only resolves; it does not read pip's configuration, so a folder of wheels that pip knows of is handed on.
COMPILE = uv pip compile --quiet --upgrade --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
          --annotation-style line --custom-compile-command "make lock"
CPU_TORCH = $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS),--index $(TORCH_CPU_INDEX))

lock: ## Resolve the locks again (needs uv).
	$(COMPILE) pyproject.toml requirements/cpu.in --override requirements/cpu.override $(CPU_TORCH) \
	    --output-file requirements/cpu.lock
	$(COMPILE) requirements/dev.in --constraint requirements/cpu.lock --output-file requirements/dev.lock
	$(COMPILE) requirements/clients.in --output-file requirements/clients.lock
	$(COMPILE) pyproject.toml requirements/cuda.in --override requirements/cuda.override \
	    --output-file requirements/cuda.lock
