# Every target makes its own environment first; a second call re-installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
METHOD ?= rra
# A worker takes a file of tests at a time, in the order of `tests/conftest.py`; by default those of few tests would come last.
SPREAD := -n 3 --dist loadscope --no-loadscope-reorder
# Threads that spin while they wait slow every other process on the same cores down.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast check format bench table clean

help:  ## Say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

install: $(STAMP)  ## Make .venv with fgzoo in it, for development

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

demo: install  ## Fine-tune on the built-in birds, compare, and see where it looks, in three minutes (METHOD=rra)
	$(BIN)/python -m fgzoo.demo --method $(METHOD)

test: install  ## Everything: rules and types beside the tests
	@$(MAKE) --no-print-directory --jobs 2 check test-fast

test-fast: install  ## The tests alone, without rules and types
	$(BIN)/python -m pytest $(SPREAD) --durations 15

check: install  ## Lint, format, types, and which module may use which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install  ## Let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install  ## Measure the data pipeline on generated images
	$(BIN)/python benchmarks/speed.py data --size 448 --batch 150

table: install  ## Write the tables of accuracy, README's too, from benchmarks/results/accuracy
	$(BIN)/python benchmarks/accuracy.py table

clean:  ## Remove the environment, caches and build products (not runs)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
