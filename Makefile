# Needs python3 (3.11 or newer), make and a C compiler; everything else goes into .venv.
# `make` alone lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
READY := $(VENV)/.ready

MEMBERS := libs/gati_core libs/gati_testing libs/gati_cli \
           services/ingress services/router services/worker \
           examples/hello examples/live examples/shop

# What `make run` serves, and what `make test` adds to pytest's command line.
PACKAGES ?= examples/hello examples/shop
PYTEST_ARGS ?=
# Processes that share the tests out; tests/conftest.py says how. 0 is none but pytest's own.
TEST_PROCESSES ?= 2

export VIRTUAL_ENV := $(CURDIR)/$(VENV)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test check properties bench lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# `exec`, so that Ctrl-C and SIGTERM reach gati itself and make waits for it.
run: $(READY)  ## start the fabric with the example packages; Ctrl-C stops it
	@exec $(BIN)/gati dev $(PACKAGES)

test: $(READY)  ## run the tests; those on containers skip themselves without Docker
	@exec $(BIN)/pytest -n $(TEST_PROCESSES) $(PYTEST_ARGS)

check: $(READY)  ## lint, format, types, import contracts, dependencies
	@echo "[1/5] ruff check"
	@$(BIN)/ruff check --quiet .
	@echo "[2/5] ruff format --check"
	@$(BIN)/ruff format --check --quiet . || { echo "run $(BIN)/ruff format ."; exit 1; }
	@echo "[3/5] mypy --strict"
	@$(BIN)/mypy
	@echo "[4/5] import contracts"
	@$(BIN)/lint-imports
	@echo "[5/5] dependencies of the members"
	@$(UV) pip check

properties: $(READY)  ## report which properties of the specification are proven
	@$(BIN)/python tests/properties/report.py

bench: $(READY)  ## run all benchmarks, one after another (needs wrk)
	@for each in round_trip fabric routing lifecycle validation diff manifest_store versions rolling waiting streaming sockets; do \
	    echo "== $$each"; $(BIN)/python benchmarks/$$each.py || exit 1; \
	done

# Universal: one file for every platform and Python version. Hashes, and no addresses.
COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
           --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)

lock: $(UV)  ## resolve the requirements again (UPGRADE=1 takes newer versions)
	@echo "[1/2] requirements.lock"
	@$(COMPILE) requirements.in --output-file requirements.lock
	@echo "[2/2] requirements-runtime.lock"
	@$(COMPILE) requirements-runtime.in --constraints requirements.lock --output-file requirements-runtime.lock
	@! grep -nE '://|file:|^--' requirements.lock requirements-runtime.lock

clean:  ## remove .venv, the state of gati dev, and caches
	rm -rf $(VENV) .gati .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- installation -----------------------------------------------------------------------

# pip installs uv alone, by its hashes in the lock; uv does the rest.
$(UV):
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found: install Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
	    f"Python {v[0]}.{v[1]} is too old: 3.11 or newer is needed; name one with PYTHON=...")'
	@echo "[1/3] creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV) || { echo "the venv module is incomplete: on Debian, install python3-venv"; exit 1; }
	@awk '/^uv==/ { on = 1 } on { print } on && !/\\$$/ { exit }' requirements.lock > $(VENV)/uv.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $(VENV)/uv.txt

$(READY): requirements.lock $(MEMBERS:=/pyproject.toml) | $(UV)
	@echo "[2/3] installing $$(grep -c '^[a-z].*==' requirements.lock) locked packages"
	@$(UV) pip install --quiet --require-hashes -r requirements.lock
	@echo "[3/3] linking $(words $(MEMBERS)) members"
	@$(UV) pip install --quiet --no-deps --no-build-isolation $(addprefix -e ,$(MEMBERS))
	@touch $@
