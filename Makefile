# Every target that needs Python sets up .venv by itself; a stamp makes that free the second time.

PYTHON ?= python3
ARGS ?=
VENV ?= .venv

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FRAMEWORKS := $(VENV)/.frameworks
# two processes: most of the time goes into small tensors, which more threads do not speed up
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

# pyright would otherwise ask the network whether there is a newer version
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.PHONY: help env rules test test-all test-with test-integrations types lint format demo lab figures bench kernels-report check-install release gpu gpu-test gpu-bench gpu-rehearsal gpu-carry clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(STAMP)  ## create .venv: pinned packages, and this one built and installed in place

# where nvcc is, CUDA is built and tested, even with a torch that has none
NVCC := $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))
export EMANEST_CUDA ?= $(if $(NVCC),1,)

# without this, an extension that cannot be built is only a warning
$(STAMP): export EMANEST_REQUIRE_EXTENSION := 1
$(STAMP): requirements.txt pyproject.toml setup.py $(wildcard csrc/* emanest/extension/*.py)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# what is generated and committed; Python's own modules are enough
rules:  ## write csrc/rules.h, which is emanest/rules.py in C++, and the list of lookahead methods
	$(PYTHON) csrc/generate_rules.py
	$(PYTHON) csrc/generate_methods.py

test: $(STAMP)  ## run the tests, except the slow ones; ARGS="-k name" goes to pytest
	$(PYTEST) -m "not slow" $(ARGS)

test-all: $(STAMP)  ## run all tests
	$(PYTEST) $(ARGS)

# `make test-with TORCH=2.11.0 PYTHON=python3.12`; with pyenv, PYENV_VERSION=3.12.1 before it makes
# that python3.12, and without, `uv python install 3.12` and PYTHON=$(uv python find 3.12).
# Packages go to .venv-2.11.0-python3.12; the extension is built in a copy of the tree, since what
# two torches build for the same Python has the same names. Files keep their times, so that nothing
# is built again unless it changed. Triton and setuptools are those that this torch asks for.
WITH = $(TORCH)-$(notdir $(PYTHON))
COPY = build/tree-$(WITH)
test-with:  ## run the tests (or TARGET=...) with another TORCH=2.11.0 and PYTHON=python3.12
	$(if $(TORCH),,$(error which torch? make test-with TORCH=2.11.0 PYTHON=python3.12))
	mkdir -p $(COPY)
	find $(COPY) -type f ! -name '*.so' ! -path '$(COPY)/build/*' -delete
	tar -c --exclude=.git --exclude-from=.gitignore . | tar -x -C $(COPY)
	sed -i -e 's/^torch==.*/torch==$(TORCH)/' -e '/^triton==/d' \
		-e 's/^setuptools==.*/setuptools>=77/' $(COPY)/requirements.txt
	touch -r requirements.txt $(COPY)/requirements.txt
	$(MAKE) -C $(COPY) $(or $(TARGET),test) VENV=$(CURDIR)/.venv-$(WITH)

$(FRAMEWORKS): $(STAMP) requirements-integrations.txt
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-integrations.txt
	@touch $@

# one process: importing the frameworks takes longer than the tests
test-integrations: $(FRAMEWORKS)  ## install the frameworks as well, and run the tests with them
	$(BIN)/python -m pytest tests/integrations $(ARGS)

# docs/frameworks.md is left out where the frameworks are not installed: test-integrations does that
types: $(STAMP)  ## have mypy and pyright read the documentation's code, and calls that they must reject
	$(BIN)/python -m pytest tests/typing $(ARGS)

lint: $(STAMP)  ## check style, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: $(STAMP)  ## fix style and formatting
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

demo: $(STAMP)  ## train a small language model with and without lookahead, three seeds: table, figure
	$(BIN)/python -m examples.lab demo

lab: $(STAMP)  ## write docs/results.md and its figures from the stored runs of the lab
	$(BIN)/python -m examples.lab page

figures: $(STAMP)  ## draw the figures of the documentation
	$(BIN)/python examples/figures.py --out build/figures
	$(BIN)/python examples/step_way.py --out docs/step_way.svg

bench: $(STAMP)  ## time the CPU cases against their peers: table, JSON; wants a quiet machine and 16 GB
	mkdir -p build/bench
	$(BIN)/python -m pytest bench --benchmark-only --benchmark-json=build/bench/cpu.json $(ARGS)
	$(BIN)/python bench/report.py build/bench/cpu.json

kernels-report: $(STAMP)  ## compile the Triton kernels for GPUs that are not here: registers, widths, spills
	$(BIN)/python -m emanest.kernels.report $(ARGS)

# on a GPU machine: no network, no .venv, the python3 that has torch for it, from the source tree
gpu:  ## one run on a GPU, in stages: tests, times, tiles; results in OUT=build/gpu
	PYTHONPATH=. $(PYTHON) -m bench.gpu_run --out $(or $(OUT),build/gpu) $(ARGS)

gpu-test:  ## the tests that need a GPU; none may be skipped that could run
	EMANEST_REQUIRE_EXTENSION=1 $(PYTHON) setup.py build_ext --inplace
	PYTHONPATH=. $(PYTHON) -m bench.stages.tests all $(ARGS)

gpu-bench:  ## the GPU cases: table, and JSON in bench/results
	PYTHONPATH=. $(PYTHON) -m bench.gpu $(ARGS)

# before a run, on a machine without a GPU; with its versions:
# make test-with TORCH=2.11.0 PYTHON=python3.12 TARGET=gpu-carry ARGS="--out $(CURDIR)/build/carry"
gpu-rehearsal: $(STAMP)  ## what `make gpu` does, to its end, without a GPU
	PYTHONPATH=. $(BIN)/python -m bench.gpu_run --rehearse --out $(or $(OUT),build/rehearsal) $(ARGS)

gpu-carry: $(STAMP)  ## compiled kernels, extension and peers, to be brought to a GPU machine
	PYTHONPATH=. $(BIN)/python -m bench.carry $(ARGS)

# with uv and Python of .venv, and torch of the package index in environments of their own
check-install: $(STAMP)  ## every usual way to install, each in a fresh environment: a table
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/install_ways.py $(ARGS)

release: $(STAMP)  ## sdist and wheels of the checked-out commit in dist/, checked in fresh environments
	rm -rf dist
	$(BIN)/uv build --quiet --sdist --wheel --out-dir dist
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/install_ways.py --dist dist

clean:  ## remove every .venv and all that was built
	rm -rf .venv .venv-* build dist *.egg-info .pytest_cache .ruff_cache .benchmarks .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
