# Every target makes .venv first when it is missing; nothing outside the project changes.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# the first that is new enough; make PYTHON=/path/to/python names another
PYTHON ?= python3 python3.13 python3.12 python3.11
SUITE ?= demo
VENV := .venv
STAMP := $(VENV)/.installed
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
unexport MAKEFLAGS MFLAGS MAKELEVEL
# commands started by the DAG find this project's programs first
RUN := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"

.PHONY: help env repro test coverage check fix ui docs bench clean

help:  ## show this list
	@echo "make TARGET; the demo runs with 'make repro', another suite with 'make repro SUITE=cifar10-mini'"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# made anew in a project that was copied or moved
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif
$(STAMP): requirements.lock pyproject.toml
	@.ci/environment $(VENV) $(PYTHON)

env: $(STAMP)  ## make .venv from the lock file, or complete it

repro: $(STAMP)  ## run a suite (SUITE=demo) and print its tables; only what changed runs again
	@$(RUN) asl-pipe expand $(SUITE) > /dev/null
	@$(RUN) asl-pipe validate $(SUITE)
	@folder=$(if $(filter demo,$(SUITE)),.,suites/$(SUITE)); \
	started=$$(date +%s); \
	$(RUN) dvc --cd $$folder repro; \
	echo "the DAG took $$(( $$(date +%s) - started )) s"; \
	$(RUN) asl-pipe tables $(SUITE)
	@echo "to use its commands: source $(VENV)/bin/activate (asl-pipe -h lists them)"

check: $(STAMP)  ## format, lint, types, layers
	@$(RUN) ruff format --check .
	@$(RUN) ruff check .
	@$(RUN) lint-imports
	@$(RUN) pyright

fix: $(STAMP)  ## format, and fix what ruff can fix
	@$(RUN) ruff check --fix .
	@$(RUN) ruff format .

# Waiting threads of several processes on few cores cost twentyfold: one compute thread in each.
# Four at a time on two cores: most tests start programs or wait for a cluster, and leave one idle.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE PYTHONDONTWRITEBYTECODE= $(RUN) python -m pytest \
	-n 4 --dist loadfile --no-loadscope-reorder --durations=10

test: check  ## check, then all tests
	@$(PYTEST)

# A third slower: every stage that a test starts is measured too.
coverage: $(STAMP)  ## all tests with the coverage of both packages
	@$(PYTEST) --cov --cov-report=term:skip-covered

ui: $(STAMP)  ## open MLflow on the project's runs
	@$(RUN) asl-pipe ui

# strict: a link or an anchor that leads nowhere is an error
docs: $(STAMP)  ## build the documentation into site/, without a network; then open site/index.html
	@NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict --quiet

# benchmarks/jobs.py needs a Slurm: by hand, see CONTRIBUTING.md
bench: $(STAMP)  ## measure the training step, the loader, watching and images on the device
	@for file in benchmarks/{flops,step,loader,watching,device_path}.py; do $(RUN) python "$$file"; done

clean:  ## remove scratch (checkpoints too) and tool caches; keep results, journals, MLflow's store, .venv
	@rm -rf .asl/jobs/*/ckpt .asl/jobs/*/out
	@rm -rf .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.* htmlcov *.egg-info build site
	@find asl_core pipeline tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
