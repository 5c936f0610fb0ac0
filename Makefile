# Three commands matter: `make demo`, `make study` and `make test`. Bare `make` explains the rest.
.DEFAULT_GOAL := help
.PHONY: help setup demo study test slow slurm vllm lint docs format wheel clean

VENV ?= .venv
VLLM ?= .venv-vllm
PYTHON ?= python3
BIN := $(VENV)/bin
DEMO ?= demo
DOMAINS ?= math code creative
SEED ?= 0
STUDY ?= small
STUDY_OUTPUT ?= $(if $(filter small,$(STUDY)),study,study-$(STUDY))
STUDY_GIVEN := $(if $(STUDY_CORPORA),"corpora='$(STUDY_CORPORA)'") $(if $(STUDY_ANCHOR),"anchor.path='$(STUDY_ANCHOR)'")

help: ## show this
	@awk 'BEGIN {FS = ":.*## "; print "make TARGET\n"} /^[a-z]+:.*## / {printf "  %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@printf '\n  DEMO=folder DOMAINS="math code" SEED=1 change the demo, VENV=folder the environment, VLLM=folder that of vLLM,\n'
	@printf '  STUDY=full STUDY_CORPORA=folder STUDY_ANCHOR=folder STUDY_OUTPUT=folder ARGS="jobs=4" the study.\n'

setup: $(VENV)/ready ## make the virtual environment with everything in it

$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "flexo needs Python 3.11 or newer; pass PYTHON=python3.11")'
	@echo "setting up $(VENV) (a few minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

# what only some targets need is installed when the first of them is asked for
$(VENV)/docs $(VENV)/notebook: $(VENV)/%: $(VENV)/ready
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$*]'
	@touch $@

demo: $(VENV)/ready ## sample corpora, anchor, three experts, merge, table, text: six minutes
	@BIN=$(abspath $(BIN)) DEMO=$(DEMO) DOMAINS="$(DOMAINS)" SEED=$(SEED) bash launch/demo.sh

study: $(VENV)/ready ## ours and all baselines on sample corpora, two seeds, one report: half an hour
	@$(BIN)/python run_study.py study=$(STUDY) "output='$(STUDY_OUTPUT)'" $(STUDY_GIVEN) $(ARGS)

test: $(VENV)/ready ## the fast suite, a file at a time on each core, at most eight
	@$(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

slow: $(VENV)/ready $(VENV)/notebook ## the tests that take minutes
	@$(BIN)/python -m pytest -q -m slow

slurm: $(VENV)/ready ## the tests on a SLURM made for them; where there can be none, the reason
	@FLEXO_SLURM_CPUS=2 bash launch/local_slurm.sh run $(BIN)/python -m pytest -q -m slurm -rs || [ $$? = 77 ]

$(VLLM)/ready: serving/vllm_plugin/pyproject.toml $(wildcard serving/vllm_plugin/flexo_vllm/*.py) serving/engines/routing.py
	@echo "setting up $(VLLM): vLLM for CPU in an environment of its own"
	@$(PYTHON) -m venv $(VLLM)
	@$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps serving/vllm_plugin
	@$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check 'serving/vllm_plugin[cpu]'
	@$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec # of builds that do not go with it
	@touch $@

vllm: $(VENV)/ready $(VLLM)/ready ## the gates of the vLLM engine, on CPU, in an environment of its own
	@FLEXO_VLLM=$(abspath $(VLLM))/bin/python $(BIN)/python -m pytest -q -m vllm

lint: $(VENV)/ready ## ruff, formatting and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# not --quiet: what is not logged does not count for --strict
docs: $(VENV)/docs ## the documentation site, strict: open site/index.html
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "open $(CURDIR)/site/index.html"

format: $(VENV)/ready ## let ruff put things in order
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

wheel: $(VENV)/ready ## build dist/flexo-*.whl, and try what it installs
	@$(BIN)/python -m build --wheel --outdir dist .
	@$(BIN)/python -m pytest -q -m 'wheel and not slow'

clean: ## remove what the demo and the builds made; the environment stays
	rm -rf $(DEMO) dist site
