# Needs Python >= 3.11 with its venv module, make and git; everything else goes into .venv/.
#   make demo                     fit argon's force field
#   make test PYTHON=python3.12   the same with another Python, in an environment of its own

PYTHON ?= python3
JOBS ?= 2

VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
ifeq ($(VERSION),)
$(error $(PYTHON) does not run; name a Python 3.11, 3.12 or 3.13: make test PYTHON=python3.12)
endif
VENV := .venv/$(VERSION)
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CONSTRAINTS := $(wildcard constraints-$(VERSION).txt)

.DEFAULT_GOAL := help
.PHONY: help env demo test test-all lint format types constraints clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile

env: $(STAMP) ## the environment, in .venv/<python version>

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "diffsim needs Python 3.11, 3.12 or 3.13; this is $(VERSION)" >&2; exit 1; }
	@echo "making the environment in $(VENV): some minutes the first time"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		$(addprefix --constraint ,$(CONSTRAINTS)) --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## fit argon's Lennard-Jones parameters to measured data
	$(BIN)/python -m diffsim.run experiment=lj_fit

test: lint types ## style, types and the tests (JOBS=2 at a time)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m 'not slow' --durations 30 --durations-min 8

test-all: lint types ## the same with the slow tests
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

lint: $(STAMP) ## ruff, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## ruff, mending what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP) ## pyright on src and tests
	$(BIN)/pyright --pythonpath $(BIN)/python

constraints: ## record what pyproject.toml resolves to today, for this Python
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(BIN)/python -c 'from importlib.metadata import distributions; \
		print(*sorted({f"{d.name}=={d.version}" for d in distributions() \
		if d.name not in ("diffsim", "pip", "setuptools")}, key=str.lower), sep="\n")' > constraints-$(VERSION).txt
	@touch $(STAMP)

clean: ## drop environments, caches and builds; runs in outputs/ stay
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis dist
	find src tests -name __pycache__ -type d -exec rm -rf {} +
