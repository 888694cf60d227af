# Every target that needs Python sets up .venv by itself; a stamp makes that free the second time.

PYTHON ?= python3
ARGS ?=

BIN := .venv/bin
STAMP := .venv/.installed
FRAMEWORKS := .venv/.frameworks
# two processes: most of the time goes into small tensors, which more threads do not speed up
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

# pyright would otherwise ask the network whether there is a newer version
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.PHONY: help env test test-all test-integrations lint format demo figures bench kernels-report gpu-test gpu-bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(STAMP)  ## create .venv: pinned packages, and this one built and installed in place

# without this, an extension that cannot be built is only a warning
$(STAMP): export EMANEST_REQUIRE_EXTENSION := 1
$(STAMP): requirements.txt pyproject.toml setup.py $(wildcard csrc/*)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

test: $(STAMP)  ## run the tests, except the slow ones; ARGS="-k name" goes to pytest
	$(PYTEST) -m "not slow" $(ARGS)

test-all: $(STAMP)  ## run all tests
	$(PYTEST) $(ARGS)

$(FRAMEWORKS): $(STAMP) requirements-integrations.txt
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-integrations.txt
	@touch $@

# one process: importing the frameworks takes longer than the tests
test-integrations: $(FRAMEWORKS)  ## install the frameworks as well, and run the tests with them
	$(BIN)/python -m pytest tests/integrations $(ARGS)

lint: $(STAMP)  ## check style, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: $(STAMP)  ## fix style and formatting
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

demo: $(STAMP)  ## train a small language model with and without lookahead: table, figure, JSON
	$(BIN)/python examples/lm.py --compare --out build/demo

figures: $(STAMP)  ## draw the figures of the documentation
	$(BIN)/python examples/figures.py --out build/figures

bench: $(STAMP)  ## time the CPU cases against their peers: table, JSON; wants a quiet machine and 16 GB
	mkdir -p build/bench
	$(BIN)/python -m pytest bench --benchmark-only --benchmark-json=build/bench/cpu.json $(ARGS)
	$(BIN)/python bench/report.py build/bench/cpu.json

kernels-report: $(STAMP)  ## compile the Triton kernels for GPUs that are not here: registers, widths, spills
	$(BIN)/python -m emanest.kernels.report $(ARGS)

# on a GPU machine: no network, no .venv, the python3 that has torch for it, from the source tree
gpu-test:  ## build the extension in place and run the tests that need a GPU
	$(PYTHON) setup.py build_ext --inplace
	PYTHONPATH=. $(PYTHON) -m pytest -p bench.source_tree -m gpu tests $(ARGS)

gpu-bench:  ## the GPU cases: table, and JSON in bench/results
	PYTHONPATH=. $(PYTHON) -m bench.gpu $(ARGS)

clean:  ## remove .venv and everything that was built
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .benchmarks .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
