PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CODE := $(wildcard actorhub tests examples benchmarks protos)
# Processes that share the tests; each has a Postgres of its own. Most tests wait for something most of the time, so that
# two cores are busy with three of them.
WORKERS ?= 3
# How many faults the nemesis injects.
FAULT_COUNT ?= 2000
# Where make can, it prints what belongs together together.
TOGETHER := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)
# pyright's wrapper would ask the package index for a newer release.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.PHONY: help venv demo demo-durable payments nightly test check lint types mypy pyright imports fmt protos protos-check bench faults nemesis clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

venv: $(VENV)/.installed ## make the virtual environment (PYTHON=python3.12 VENV=.venv312 for another one)

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("actorhub needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable '.[embedded,examples,ops,speed]' --group dev
	touch $@

demo: venv ## run a cluster on a real Postgres, lose a runner, check the result
	$(BIN)/python -m examples.flights

demo-durable: venv ## the same as stored messages: two runners killed, Postgres crashed
	$(BIN)/python -m examples.flights --durable --flights 50000

payments: venv ## transfers between accounts while runners are killed; every cent is counted
	$(BIN)/python -m examples.payments

nightly: venv ## a job in steps, its leader killed or moved at every boundary; each step counted, pandas compared
	$(BIN)/python -m examples.nightly

test: check ## everything that CI runs: check, then the tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

check: venv ## lint, types, imports and generated code, two at a time
	@$(MAKE) --no-print-directory --jobs=2 $(TOGETHER) pyright mypy lint imports protos-check

lint: venv ## ruff: rules and format
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

types: mypy pyright ## mypy --strict and pyright strict

mypy: venv ## mypy --strict, all code
	$(BIN)/mypy $(CODE)

pyright: venv ## pyright strict, the package and the tests of its types
	$(BIN)/pyright --pythonpath $(BIN)/python

imports: venv ## the layers, by import-linter
	$(BIN)/lint-imports --no-logo

fmt: venv ## fix what ruff can fix, then format
	$(BIN)/ruff check --fix-only $(CODE)
	$(BIN)/ruff format $(CODE)

protos: venv ## generate the code under actorhub/transport/grpc/_pb from protos/
	$(BIN)/python protos/generate.py

protos-check: venv ## fail if the generated code is stale
	$(BIN)/python protos/generate.py --check

bench: venv ## run the benchmarks
	$(BIN)/python -m benchmarks

faults: venv ## run the slow tests and the fault tests (long)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'slow or faults' -o timeout=1800 -o faulthandler_timeout=1900
	ACTORHUB_LOCKS=lease $(BIN)/python -m pytest -n 2 --dist worksteal -m 'faults' -o timeout=1800 -o faulthandler_timeout=1900 tests/faults

nemesis: venv ## all workloads under 2,000 faults of every kind, and the report of it (FAULT_COUNT, FAULT_SEED, ACTORHUB_LOCKS)
	FAULT_COUNT=$(FAULT_COUNT) FAULT_REPORT=benchmarks/results/faults.md \
		$(BIN)/python -m pytest -s -n 0 -m faults -o timeout=7200 -o faulthandler_timeout=7300 tests/faults/nemesis -k survives_the_nemesis

clean: ## remove the virtual environment, caches and builds
	rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find $(CODE) -type d -name __pycache__ -prune -exec rm -rf {} +
