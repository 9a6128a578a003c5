# make demo   from nothing to a trained, exported, played model in the folder demo/
# make test   lint, types and every test
# Both make .venv first. Another interpreter: make PYTHON=python3.12 test

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
BIN := $(VENV)/bin
WORKERS ?= 2

export OMP_NUM_THREADS ?= 1
export MPLBACKEND ?= Agg

.PHONY: help install demo test lint types tests fast clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -3

install: $(VENV)/.ready

$(VENV)/.ready: setup.py pyproject.toml requirements-cpu.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "rave_tools needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -r requirements-cpu.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: $(VENV)/.ready
	env -u OMP_NUM_THREADS $(BIN)/rave_tools demo --output demo

lint: $(VENV)/.ready
	$(BIN)/ruff check rave_tools tests scripts setup.py $(wildcard benchmarks)

types: $(VENV)/.ready
	$(BIN)/mypy

tests: $(VENV)/.ready
	$(BIN)/python -m pytest -n $(WORKERS)

fast: $(VENV)/.ready
	$(BIN)/python -m pytest -n $(WORKERS) -m 'not slow'

test: lint types tests

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
