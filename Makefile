# spyke-kohya: `make help` lists the targets. The first call sets up .venv; later calls find it ready.

PRESET ?= demo
SUITABLE = import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c '$(SUITABLE)' >/dev/null 2>&1 && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
ENGINE_READY := $(VENV)/.engine-ready
DEV_READY := $(VENV)/.dev-ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SPYKE := $(BIN)/spyke-kohya

ifeq ($(PRESET),demo)
TRAIN_NEEDS := demo-inputs
# the demo is made for the miniature, also on a machine whose SPYKE_ENGINE names the real sd-scripts
TRAIN_FLAGS := --engine scripts/miniature
endif

# with their bytecode kept, commands start twice as fast
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup engine train validate plan demo-inputs check test contract faults bench docs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo "  PRESET=NAME chooses presets/NAME.toml (now: $(PRESET)); ARGS='...' is passed on"

setup: $(ENGINE_READY) ## set up .venv with all that training needs, and the engine where it can be reached

train: $(ENGINE_READY) $(TRAIN_NEEDS) ## train PRESET, watch it, rank its checkpoints
	@$(SPYKE) train $(PRESET) $(TRAIN_FLAGS) $(ARGS)

validate: $(ENGINE_READY) $(TRAIN_NEEDS) ## everything wrong with PRESET
	@$(SPYKE) validate $(PRESET) $(ARGS)

plan: $(ENGINE_READY) $(TRAIN_NEEDS) ## what sd-scripts will do with PRESET
	@$(SPYKE) plan $(PRESET) $(ARGS)

demo-inputs: $(ENGINE_READY)
	@$(BIN)/python scripts/make_demo_dataset.py dataset/demo
	@$(BIN)/python scripts/make_random_base.py models/miniature --size tiny

engine: ## fetch the pinned sd-scripts into third_party/sd-scripts
	@sh scripts/fetch_engine.sh

check: $(DEV_READY) ## formatting, lint, types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

# each file on one worker: its tests share what they have trained
test: $(DEV_READY) ## the whole test suite
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

contract: $(DEV_READY) ## the contract suite on the real sd-scripts too (about 25 minutes, 5 GB of disk)
	@$(BIN)/python -m pytest tests/contract --require-engine -v $(ARGS)

faults: $(DEV_READY) ## every fault of docs/reliability.md, 20 times (under 10 minutes on 2 idle cores)
	@$(BIN)/python -m pytest -q -n 4 tests/faults --times 20 $(ARGS)

bench: $(DEV_READY) demo-inputs ## how fast the wrapper itself is
	@$(BIN)/python scripts/bench.py $(ARGS)

docs: $(DEV_READY) ## write docs/findings.md and schemas/ anew from the code
	@$(BIN)/python scripts/make_docs.py

clean: ## remove .venv and caches; what you trained stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "spyke-kohya needs Python 3.11, 3.12 or 3.13; none was found." \
	  "Install one and say: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c '$(SUITABLE)' || { echo "$(PYTHON) is not Python 3.11, 3.12 or 3.13"; exit 1; }
	@echo "setting up $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

$(ENGINE_READY): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing torch and what sd-scripts needs (some GB; a few minutes, once)"
	@$(PIP) --editable '.[engine]'
	@sh scripts/fetch_engine.sh
	@touch $@

$(DEV_READY): $(ENGINE_READY)
	@echo "installing what the tests need"
	@$(PIP) --editable '.[engine,dev]'
	@touch $@
