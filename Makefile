# Every target sets up what it needs: the first one that runs creates .venv.
# Another interpreter: make PYTHON=python3.12 …   More for pytest: make test ARGS="-k loop -x"

PYTHON ?= python3
MEMBERS := kernel $(patsubst %/pyproject.toml,%,$(sort $(wildcard plugins/*/*/pyproject.toml)))
BIN := .venv/bin
INSTALLED := .venv/.installed
ENGINES := .venv-engines
ARGS ?=

# One thread per process: on models this small, threads only wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# Half of a test is waiting for processes, so workers pay even on few cores; ARGS=-n0 for a debugger.
PARALLEL := -n auto --maxprocesses 8 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all test-engines lint fix docs bench bench-engines bench-learning pin clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## Create .venv with every package, editable, and the development tools

$(INSTALLED): Makefile .ci/install .ci/uv-settings constraints.txt pyproject.toml $(MEMBERS:%=%/pyproject.toml)
	@.ci/install "$(PYTHON)" $(MEMBERS)
	@touch $@

demo: $(INSTALLED) ## Train the built-in tiny model on multiplication (minutes, no GPU)
	$(BIN)/skyrl run

test: $(INSTALLED) ## Run the suite without what is marked slow
	$(PYTEST) -m "not slow" $(PARALLEL) $(ARGS)

test-all: $(INSTALLED) ## Run the whole suite; its summary goes into benchmarks/RESULTS.md
	$(PYTEST) --junitxml=.venv/suite.xml $(PARALLEL) $(ARGS)
	$(BIN)/python benchmarks/suite.py .venv/suite.xml

test-engines: $(ENGINES)/.installed ## Run the tests of engines that need an environment of their own (vLLM)
	OMP_NUM_THREADS=1 $(ENGINES)/bin/python -m pytest plugins/backends/vllm/tests $(ARGS)

$(ENGINES)/.installed: Makefile .ci/install-engines .ci/uv-settings .ci/members.py $(MEMBERS:%=%/pyproject.toml)
	@.ci/install-engines "$(PYTHON)"

lint: $(INSTALLED) ## Check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(INSTALLED) ## Repair what ruff can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED) ## Write the generated pages, check all pages against the code, run their commands
	$(BIN)/python docs/generate.py
	$(PYTEST) tests/test_docs.py tests/test_reference_pages.py $(ARGS)

bench: $(INSTALLED) ## Measure speed and memory into benchmarks/RESULTS.md (minutes)
	@missed=0; $(BIN)/python benchmarks/bench.py || missed=1; \
	$(BIN)/python benchmarks/ray_bench.py || missed=1; \
	$(MAKE) --no-print-directory bench-engines || missed=1; exit $$missed

bench-engines: $(INSTALLED) ## The part of it that needs vLLM; without vLLM's CPU build it says so
	@if $(MAKE) --no-print-directory $(ENGINES)/.installed; then \
		missed=0; $(ENGINES)/bin/python benchmarks/engines.py $(ARGS) || missed=1; \
		$(BIN)/python benchmarks/simulation.py && exit $$missed; \
	else \
		echo "bench-engines: not run: $(ENGINES) could not be made; what it needs is said above" >&2; \
	fi

bench-learning: $(INSTALLED) ## Train five seeds and the controls into benchmarks/RESULTS.md (long)
	$(BIN)/python benchmarks/learning.py
	$(BIN)/python benchmarks/layouts.py
	$(BIN)/python benchmarks/algorithms.py

pin: $(INSTALLED) ## Write the installed versions into constraints.txt
	.ci/pin > constraints.txt.new
	mv constraints.txt.new constraints.txt

clean: ## Remove .venv and all caches; runs stay
	rm -rf .venv $(ENGINES) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
