# Everything works from a fresh clone: the first call makes .venv and fills it, later calls start at once.
#   make demo    see the whole idea work on handwritten digits
#   make test    every check that a change must pass
# On Debian and Ubuntu: apt-get install make python3-venv

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PINS := --constraint constraints/ci.txt
WORKERS ?= 2
# Networks of a few thousand parameters gain nothing from a second thread, and on a busy machine the threads of one
# process wait for one another: minutes instead of seconds.
ONE_THREAD := OMP_NUM_THREADS=1
PYTEST := $(ONE_THREAD) $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help setup demo test lint types contracts pytest docs wheel format serve clean

# $(call stage,name,command): run it and say how long it took; a failing command stops everything after it.
stage = @printf '\n== %s\n' '$(1)'; start=$$(date +%s); { $(2); } || { printf '== %s FAILED after %ss\n' '$(1)' $$(($$(date +%s) - start)); exit 1; }; \
	printf '== %s: %ss\n' '$(1)' $$(($$(date +%s) - start))

help:
	@echo 'make demo       teacher, book and students on handwritten digits'
	@echo 'make test       lint, types, import contracts, tests, docs, wheel: all of the below'
	@echo 'make lint       ruff check and ruff format --check'
	@echo 'make types      mypy --strict'
	@echo 'make contracts  import contracts'
	@echo 'make pytest     tests, doctests and the examples of README and docs; ARGS="tests/losses -x" picks'
	@echo 'make docs       the site, strict, into site/'
	@echo 'make wheel      the wheel, installed alone and run without torch'
	@echo 'make format     mend what ruff can mend, and write generated pages again'
	@echo 'make serve      the site, live'
	@echo 'make clean      remove .venv and everything built'

demo: $(VENV)/.train
	$(ONE_THREAD) $(BIN)/bookkd demo

test: lint types contracts pytest docs wheel
	@printf '\n== all checks passed\n'

setup: $(VENV)/.dev

lint: $(VENV)/.dev
	$(call stage,lint,$(BIN)/ruff check . && $(BIN)/ruff format --check .)

types: $(VENV)/.dev
	$(call stage,types,$(BIN)/mypy)

contracts: $(VENV)/.dev
	$(call stage,contracts,$(BIN)/lint-imports)

pytest: $(VENV)/.dev
	$(call stage,pytest,$(PYTEST) -n $(WORKERS) $(ARGS))

docs: $(VENV)/.dev
	$(call stage,docs,NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet)

wheel: $(VENV)/.dev
	$(call stage,wheel,PYTHON=$(BIN)/python .ci/wheel)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python docs/make_cli.py

serve: $(VENV)/.dev
	$(BIN)/mkdocs serve

clean:
	rm -rf $(VENV) build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/.train $(VENV)/.dev: $(VENV)/.%: pyproject.toml constraints/ci.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'Expected `$(PYTHON)` to be Python 3.11 or newer. Run: make PYTHON=python3.12 $(MAKECMDGOALS)'; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo 'Expected `$(PYTHON)` to have the modules venv and ensurepip. Run: apt-get install python3-venv'; exit 2; }
	@printf '== setting up %s for %s (once; PyTorch is a large download)\n' $(VENV) $*
	@start=$$(date +%s); $(PYTHON) -m venv $(VENV) \
		&& $(PIP) install $(PINS) hatchling editables \
		&& $(PIP) install $(PINS) --no-build-isolation --editable '.[$*]' \
		&& printf '== set up: %ss\n' $$(($$(date +%s) - start))
	@touch $@
