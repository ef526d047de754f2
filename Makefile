# Verbs, each one line; `make` lists them. CI calls the same ones.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/pytest

.PHONY: help setup fmt lint type unit script sim soak fuzz rig test demo bench golden clean

help: ## list these verbs
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what is missing (uv into .venv, the rest by apt) and build the test control plane; says so first
	@$(PYTHON) tests/rig/setup.py

fmt: setup ## format the code
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

lint: setup ## what pre-commit runs: format, ruff, import contracts, spelling, YAML
	$(BIN)/pre-commit run --all-files

type: setup ## mypy, strict, tests included
	$(BIN)/mypy

unit: setup ## pure rooms and doors without a network
	$(PYTEST) tests/unit tests/tidy tests/fuzz

script: setup ## recorded stories of the speaker's brain (REWRITE=1 records anew)
	$(PYTEST) tests/scripts

golden: ## record the scripts anew; read the diff before you commit it
	REWRITE=1 $(MAKE) script

sim: setup ## the simulator, a short walk over many seeds
	$(PYTEST) tests/sim

soak: setup ## the simulator for an hour (SOAK=seconds)
	$(BIN)/python -m tests.sim --soak $(or $(SOAK),3600)

fuzz: setup ## damage everything that comes in from outside (FUZZ=seconds, default 600; SEED=1)
	$(BIN)/python -m tests.fuzz --seconds $(or $(FUZZ),600) --seed $(or $(SEED),1)

rig: setup ## real kernel, real API server, real packets (root)
	$(PYTEST) tests/netns tests/cluster tests/story

test: lint type unit script sim rig ## everything that CI runs

demo: setup ## a cluster, a VirtualIP, a crash, the measured gap (KEEP=1 leaves it running)
	@$(BIN)/python -m tests.rig.demo $(if $(KEEP),--keep)

bench: setup ## Holdfast, keepalived and ucarp crashed side by side; tables and picture into docs/ (ONLY=vmac: one part)
	@$(BIN)/python -m tests.rig.bench $(if $(ONLY),--only "$(ONLY)")

clean: ## remove what the build and the tests left in this checkout
	rm -rf .venv dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
