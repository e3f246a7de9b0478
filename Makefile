# Two commands matter: `make demo` and `make test`. Both install what they need, once.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TESTS ?= tests

.PHONY: demo test check lint types imports setup system bench lock format clean

demo: setup ## run the main job on real input
	$(BIN)/python examples/demo.py

test: setup ## every test; the kernel's and FUSE's really run
	$(BIN)/python -m pytest $(TESTS)

check: lint types imports test ## what CI runs

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports --no-cache

bench: setup ## the figures of DESIGN.md, on this machine
	$(BIN)/python examples/bench.py

setup: system $(INSTALLED)

system:
	@scripts/install-system-packages

# pip compiles to .pyc as it installs: without them every Ray worker compiles Ray anew, and starts in 850 ms, not 330.
$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
	  || { echo "error: $(PYTHON) is not Python 3.11 or 3.12; install one and run: make PYTHON=python3.11 …" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the Python packages of requirements.lock (about a minute)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: ## after a change of the dependencies
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url \
	  --extra dev pyproject.toml --output-file requirements.lock

clean:
	rm -rf $(VENV) build *.egg-info
