# `make demo` runs the main job, `make test` the tests; both set up what they need first.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Debian's own interpreter is the faster build; any Python >= 3.11 with venv will do.
PYTHON ?= $(shell for p in /usr/bin/python3 python3; do $$p -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: help demo test properties check bench format clean kubectl

demo: $(STAMP) ## show what the platform does, step by step
	$(BIN)/capstan demo

help: ## say what there is to make
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1: \2/p' Makefile

test: $(STAMP) kubectl ## all tests (fetches kubectl)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

# Thousands of random clusters; `make test` looks at a few dozen.
properties: $(STAMP) ## the property tests on thousands of clusters
	PROPERTY_EXAMPLES=2000 $(BIN)/python -m pytest -q -n 2 --dist worksteal tests/scheduling tests/allocation -k "properties or reference"

check: $(STAMP) ## format, lint, types, import contracts
	$(BIN)/ruff format --check src tests bench
	$(BIN)/ruff check src tests bench
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP) ## what it costs, beside peers and naive ways
	$(BIN)/python -m bench

format: $(STAMP) ## format and mend what the linter can
	$(BIN)/ruff format src tests bench
	$(BIN)/ruff check --fix src tests bench

# The end-to-end tests need a kubectl of 1.30 or newer; one on PATH is used, else Debian's package is unpacked under .tools.
kubectl: $(STAMP) ## fetch kubectl where none is installed
	$(BIN)/python tests/tools/kubectl.py

$(STAMP): requirements/dev.txt pyproject.toml
	@if [ -z "$(PYTHON)" ]; then \
	  echo "Capstan needs Python 3.11 or newer with its venv module; on Debian: apt-get install python3 python3-venv" >&2; exit 1; fi
	@echo "Setting up $(VENV); this takes about half a minute."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

clean: ## remove what was built
	rm -rf $(VENV) .tools .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
