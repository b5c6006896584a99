# `make` or `make help` lists what there is.  Needs make and Python 3.11 or newer; everything else goes into .venv.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help setup demo ablations test lint lab docs bench faults nightly fix scenes-clip scenes-vit clean

BIN := .venv/bin
READY := .venv/.installed
# The first Python that is new enough; `make setup PYTHON=/path/to/python` chooses another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)
ARGS ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONUTF8 := 1

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "make %-12s %s\n", $$1, $$2}'

setup: $(READY)  ## .venv with everything (again only when pyproject.toml changed)

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found; install one, or name it: make setup PYTHON=/path/to/python3"; exit 1; }
	@test -x $(BIN)/python || { echo "Creating .venv with $$($(PYTHON) --version)"; $(PYTHON) -m venv .venv; } || \
		{ rm -rf .venv; echo "$(PYTHON) cannot make a virtual environment; on Debian or Ubuntu: apt install python3-venv"; exit 1; }
	@echo "Installing torch, JupyterLab and the rest into .venv: up to 6 GB, some minutes, once."
	@$(BIN)/python -m pip install --quiet --retries 10 --editable '.[test]'
	@touch $@

demo: setup  ## the whole method on the embedded data, then one table (ARGS="--seed 1")
	@$(BIN)/hpdval demo $(ARGS)

ablations: setup  ## the paper's ablations with three seeds, and their report (other recipes and parts: docs/sweeps.md)
	@$(BIN)/hpdval sweep 05 --grid ablations --seeds 3 --out runs/ablations --report reports/ablations $(ARGS)

test: export OMP_NUM_THREADS ?= 1
test: export MPLBACKEND := Agg
test: lint  ## what CI runs: lint, types, unit tests, doctests, every notebook with smoke parameters, also in a browser
	@$(BIN)/python tests/browser/chromium.py
	@$(BIN)/python tests/smoke_notebooks.py build/smoke
	@$(BIN)/python -m pytest tests hpdval build/smoke $(WORKERS) $(NBVAL) $(ARGS)

WORKERS := --numprocesses 2
NBVAL := --nbval-lax --nbval-current-env --nbval-cell-timeout=300 --nbval-sanitize-with tests/nbval_sanitize.cfg

lint: setup  ## ruff and mypy
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { echo "Not formatted; run: make fix"; exit 1; }
	@$(BIN)/mypy

fix: setup  ## format, and mend what ruff can
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .
	@$(BIN)/nbstripout --keep-id notebooks/*.ipynb

lab: setup  ## JupyterLab on the notebooks (as root, in a container: ARGS=--allow-root)
	@$(BIN)/jupyter lab --notebook-dir=. --LabApp.default_url=/lab/tree/notebooks $(ARGS)

docs: setup  ## the site, into build/docs (open build/docs/index.html; ARGS="-b linkcheck" asks outer links)
	@$(BIN)/python -m sphinx -E -W --keep-going -q -c docs -d build/doctrees . build/docs $(ARGS) && echo build/docs/index.html

bench: export OMP_NUM_THREADS ?= 1
bench: setup  ## speed and memory, into reports/benchmarks (ARGS="growth --repeats 5"; --quick for a smoke test)
	@$(BIN)/python -m benchmarks.run $(ARGS)

FAULT_TABLE := --fault-table reports/reliability.md

faults: export OMP_NUM_THREADS ?= 1
faults: setup  ## inject every fault as often as docs/reliability.md says, and write reports/reliability.md
	@$(BIN)/python -m pytest tests -m fault $(WORKERS) $(FAULT_TABLE) $(ARGS)

nightly: export OMP_NUM_THREADS ?= 1
nightly: setup  ## what is too long for every change, and all faults
	@$(BIN)/python -m pytest tests -m "nightly or fault" $(WORKERS) $(FAULT_TABLE) $(ARGS)

scenes-clip: setup  ## train the shipped small CLIP again, into build/scenes-clip
	@$(BIN)/python -m hpdval.training.pretrain --out build/scenes-clip $(ARGS)

scenes-vit: setup  ## train the shipped small labelled ViT again, into build/scenes-vit
	@$(BIN)/python -m hpdval.training.pretrain_vit --out build/scenes-vit $(ARGS)

clean:  ## remove build products and tool caches; .venv and runs stay
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
	@find hpdval tests benchmarks notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
