# `make demo` shows the whole loop, `make test` tests it; both set up what they need. Fresh Debian or Ubuntu: git, python3, make.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -ec
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
INSTALLED := $(VENV)/.installed-from-pyproject
EXTRAS := litert,onnx,demo,fleet,trainer,dev
export PATH := $(PATH):/usr/sbin:/sbin
export OMP_NUM_THREADS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Bytecode is kept: else each process of the tests compiles the project again.
unexport PYTHONDONTWRITEBYTECODE

# APT: install Debian packages, asking for sudo where needed; says in one sentence what is missing when it cannot.
define APT
if ! command -v apt-get >/dev/null; then echo "$(1) is missing and there is no apt-get here: install it, then run make again." >&2; exit 1; fi; \
sudo=; if [ "$$(id -u)" != 0 ]; then sudo=sudo; [ -t 0 ] || sudo="sudo -n"; fi; \
if [ -n "$$sudo" ] && ! command -v sudo >/dev/null; then echo "$(1) is missing and this user has no sudo: ask for 'apt-get install $(1)', then run make again." >&2; exit 1; fi; \
echo "Installing $(1) with apt-get"; \
{ $$sudo apt-get -o DPkg::Lock::Timeout=120 update -qq && \
  $$sudo env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 install -y -qq --no-install-recommends $(1) >/dev/null; } || \
{ echo "$(1) is missing and apt-get could not install it: see its message above." >&2; exit 1; }
endef

.PHONY: help install broker demo test coverage check bench soak arm64 clean

help: ## this list
	@grep -hE '^[a-z0-9]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9]+):.*## /  make \1\t/' | expand -t 16

install: $(INSTALLED) ## .venv with everything in it (done by the others when needed)

$(INSTALLED): pyproject.toml
	@if [ -z "$(PYTHON)" ]; then echo "Python 3.11 or newer is needed, and python3 is older or missing: install it, then run make again." >&2; exit 1; fi
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { $(call APT,$(notdir $(PYTHON))-venv); }
	@echo "Setting up $(VENV) (some 2.5 GB; 2 to 3 minutes the first time)"
	@[ -x $(BIN)/python ] && $(BIN)/python -c 'import pip' 2>/dev/null || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python -m pip install --no-warn-script-location -e '.[$(EXTRAS)]' 2>&1 \
		| { grep --line-buffered -vE '^(Requirement already|WARNING: Location|Looking in|  Downloading|  Using cached|Processing)|metadata' || true; }
	@touch $@

broker:
	@command -v mosquitto >/dev/null || { $(call APT,mosquitto); }

demo: $(INSTALLED) ## the whole loop, live, then a table; under 3 minutes
	@$(BIN)/kasmina-trainer demo $(ARGS)

test: $(INSTALLED) broker ## every quick test, with coverage (floor 85 %); `make test ARGS="-k NAME"` adds to pytest's line
	@rm -f .coverage .coverage.*
	@mkdir -p build
	@$(BIN)/python -m compileall -q -j 2 kasmina_edge kasmina_trainer benchmarks tests/worlds
	@$(BIN)/python -m pytest -m "not slow and not soak" -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term $(ARGS)

coverage: $(INSTALLED) ## the lines that the last `make test` left out, as pages in build/coverage
	@$(BIN)/python -m coverage html -q -d build/coverage

check: $(INSTALLED) ## lint, types, import arrows, architecture tests; under a minute
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest -q tests/architecture

bench: $(INSTALLED) broker ## measured against its targets; `make bench only="NAME NAME"`, ARGS=--quick, ARGS=--page
	@$(BIN)/python -m benchmarks.run $(if $(only),--only $(only)) $(ARGS)

soak: $(INSTALLED) broker ## the long variants: power cuts, faults, a million inferences; `make soak ARGS="-k NAME"`
	@$(BIN)/python -m pytest -m "slow or soak" $(ARGS)

arm64: $(INSTALLED) ## the wheel on a 64-bit Arm system under qemu: conformance, deploy, update, answers compared; needs root
	@PYTHON=$(BIN)/python tests/arm64/build.sh

clean: ## removes .venv and everything built
	@rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage .coverage.*
