# filmloop: `make retrain` closes the loop once on this machine, `make test` proves it. Needs Python >= 3.11, nothing else.

PYTHON ?= python3
SITE   ?= site_configs/local.toml
BIN    := .venv/bin
RUN    := $(BIN)/filmloop
# More options of the command that a target runs: make demo ARGS="--seconds 40"
ARGS   ?=
FLAGS  := --site $(SITE) $(ARGS)
# Two tests at a time, one file's in one process and in their order: most of them wait for processes of their own.
TOGETHER := --numprocesses 2 --dist loadfile --no-loadscope-reorder
# With SLOW=yes the tests that are marked slow, too: kills, brokers, schedulers, whole trainings.
SLOW   ?=

.DEFAULT_GOAL := help
.PHONY: help install retrain demo test lint edge ui status check bench clean

help:       ## show this list
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 18
	@echo 'SITE=FILE is the site file of all that run filmloop; ARGS="..." adds options: make demo ARGS="--seconds 40"'

install: .venv/.local  ## create .venv with all that the local site runs on, pinned

retrain: .venv/.local  ## one cycle: watch, stage, retrain, judge, register, swap
	$(RUN) retrain $(FLAGS)

demo: .venv/.local  ## the story in a few minutes: drift, retrain, a refused challenger, a rollback
	$(RUN) demo $(FLAGS)

edge: .venv/.local  ## run the edge service until Ctrl-C
	$(RUN) edge run $(FLAGS)

ui: .venv/.local  ## start the registry if need be and print the address of its UI
	$(RUN) registry start $(FLAGS)

status: .venv/.local  ## what is live, since when, how good
	$(RUN) status $(FLAGS)

check: .venv/.local  ## is this site ready? what is missing?
	$(RUN) site check $(FLAGS)

bench: .venv/.bench  ## measure this machine; one JSON line per benchmark
	@for name in edge stage swap latency soak sources inference train warmstart drift cycle model globus; do $(RUN) bench $$name --json || exit 1; done
	@for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

lint: .venv/.dev  ## format check, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: .venv/.dev lint  ## lint, types, architecture, unit, contract, integration, fault, docs; everything with SLOW=yes
	sh .ci/system
	OMP_NUM_THREADS=1 $(BIN)/pytest $(TOGETHER) $(if $(SLOW),,-m "not slow")

clean:      ## remove the environment (state in .filmloop stays)
	rm -rf .venv

# Environments in one: what a site runs on, and on top of it what benchmarks or developers need. A stamp is newer than its
# inputs or the install runs again; pip does nothing for what is there already.
.venv/.local: pyproject.toml constraints.txt
	sh .ci/install "$(PYTHON)" local
	@touch $@

.venv/.bench: .venv/.local
	sh .ci/install "$(PYTHON)" local,bench,globus
	@touch $@

.venv/.dev: .venv/.local
	sh .ci/install "$(PYTHON)" dev
	@touch $@
