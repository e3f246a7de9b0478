# Two commands matter: `make demo` and `make test`. Both install what they need, once.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_FOR_DEVELOPERS := $(VENV)/.installed-for-developers
TESTS ?= tests
SOAK_S ?= 300
SOAK_SEED ?=
BENCH ?=
LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url

.PHONY: demo unit test coverage soak test-in-container check lint types imports docs bench setup install system \
  system-for-tests lock format clean

demo: setup ## run the main job on real input
	$(BIN)/python examples/demo.py

unit: $(INSTALLED_FOR_DEVELOPERS) ## the tests that need neither root nor a system package nor a network
	$(BIN)/python -m pytest tests/unit

test: setup ## every test, in parallel where that is safe; the kernel's and FUSE's really run
	$(BIN)/python -m tests.support.in_parts $(TESTS)

coverage: setup ## what no test runs in the processes of pytest; a service's own are not measured
	$(BIN)/coverage erase
	-$(BIN)/python -m tests.support.in_parts --cov --cov-append --cov-report= $(TESTS)
	$(BIN)/coverage report

soak: setup ## random calls under random kills: SOAK_S for each mount driver that is offered; and longer random tests
	SOAK_S=$(SOAK_S) SOAK_SEED=$(SOAK_SEED) $(BIN)/python -m pytest tests/soak -m soak -s
	HOLDFAST_TEST_LAYER_HISTORIES=$(or $(LAYER_HISTORIES),20000) \
	  $(BIN)/python -m pytest --timeout 7200 tests/contract/test_layer_protocol.py
	HOLDFAST_TEST_FUZZ_SEED=$(or $(SOAK_SEED),1) HOLDFAST_TEST_FUZZ_REQUESTS=2500 \
	  HOLDFAST_TEST_KILLED_STARTS=1000 HOLDFAST_TEST_STEPS_APART=11 \
	  $(BIN)/python -m pytest --timeout 3600 tests/acceptance/test_fuzz.py tests/integration/test_orphans.py
	HOLDFAST_TEST_LAYER_HISTORIES=500 $(BIN)/python -m pytest tests/integration/test_layer_properties.py
	HOLDFAST_TEST_INCREMENTAL_HISTORIES=200 HOLDFAST_TEST_GIT_BACKUPS=50 \
	  $(BIN)/python -m pytest tests/integration/test_incremental_history.py tests/integration/test_git_history.py

test-in-container: setup ## the acceptance tests once more, in a container with the fewest privileges
	$(BIN)/python -m tests.support.in_container tests/acceptance

check: lint types imports docs test test-in-container ## what CI runs

lint: $(INSTALLED_FOR_DEVELOPERS)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(INSTALLED_FOR_DEVELOPERS)
	$(BIN)/mypy

imports: $(INSTALLED_FOR_DEVELOPERS)
	$(BIN)/lint-imports --no-cache

docs: $(INSTALLED_FOR_DEVELOPERS) ## the documents as a site, in build/docs; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

bench: setup ## Holdfast beside other tools, on this machine; BENCH=--quick for smaller directories, a few minutes
	PYTHONPATH=examples $(BIN)/python -m bench $(BENCH)

setup: system-for-tests $(INSTALLED_FOR_DEVELOPERS) ## what a developer needs

install: system $(INSTALLED) ## what a node needs: nothing of the tests

system:
	@scripts/install-system-packages

system-for-tests:
	@scripts/install-system-packages --for-tests

$(INSTALLED): requirements.lock pyproject.toml
	@PYTHON=$(PYTHON) scripts/install-python-packages $(VENV) requirements.lock
	@touch $@

$(INSTALLED_FOR_DEVELOPERS): requirements-dev.lock pyproject.toml
	@PYTHON=$(PYTHON) scripts/install-python-packages $(VENV) requirements-dev.lock
	@touch $@

format: $(INSTALLED_FOR_DEVELOPERS)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: ## after a change of the dependencies
	$(LOCK) --extra build pyproject.toml --output-file requirements.lock
	$(LOCK) --extra dev pyproject.toml --constraint requirements.lock --output-file requirements-dev.lock

clean:
	rm -rf $(VENV) build *.egg-info
