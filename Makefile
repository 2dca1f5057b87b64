# `make help` lists the targets. ARGS are passed on: make train ARGS="trainer.max_epochs=3 seed=1"
.DEFAULT_GOAL := help
.SUFFIXES:

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
UV := $(BIN)/uv
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--custom-compile-command "make lock" $(ARGS)

# The same words for every target that needs the environment.
define new_venv
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	echo "expected Python >= 3.11; got $$($(PYTHON) --version 2>/dev/null || echo no Python) as '$(PYTHON)'." \
	"Name a newer one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	echo "expected Python's venv module; '$(PYTHON)' comes without it." \
	"Install it (Debian and Ubuntu: python3-venv), then run make again." >&2; exit 1; }
@echo "Setting up .venv from requirements.txt (once; some minutes where nothing is cached)"
@$(PYTHON) -m venv --clear .venv
@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.txt
endef

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: .venv/.installed ## create .venv from the hash-locked requirements

# The stamp comes last and each attempt starts from an empty .venv: an interrupted set-up is never trusted.
# The build constraints pin, by hash, what the one source distribution (antlr4, of Hydra) is built with.
.venv/.installed: requirements-uv.txt requirements.txt pyproject.toml
	$(new_venv)
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes --build-constraints requirements.txt -r requirements.txt
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: train
train: setup ## train the CNN-LSTM on the demo videos; ARGS are Hydra overrides
	$(BIN)/python train.py model=cnn_lstm $(ARGS)

# The tests start many processes: bytecode is kept, also where an image says otherwise, so that each file is compiled once.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: test
test: setup ## run the whole test suite; ARGS go to pytest
	$(PYTEST) $(ARGS)

.PHONY: test-fast
test-fast: setup ## run the part of the test suite that takes a minute
	$(PYTEST) -m "not slow" $(ARGS)

.PHONY: lint
lint: setup ## ruff (lint, format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy vidcls experiments hydra_plugins/vidcls_sweeps $(wildcard *.py)

.PHONY: tensorboard
tensorboard: setup ## serve the dashboards of all runs
	@mkdir -p runs
	$(BIN)/tensorboard --logdir runs $(ARGS)

.PHONY: sweep
sweep: setup ## a small sweep: frames x resolution x LSTM size, 8 runs
	$(BIN)/python train.py -m data.num_frames=8,16 data.resolution=64,112 model.lstm.hidden_size=32,64 $(ARGS)

.PHONY: experiments
experiments: setup ## run the studies again: sizes, order, motion; with VIDCLS_REAL_DATA leakage and models too (hours on 2 cores)
	$(BIN)/python experiments/size_grid/size_grid.py
	$(BIN)/python experiments/order/order.py
	$(BIN)/python experiments/demo_motion/motion.py
	@if [ -n "$$VIDCLS_REAL_DATA" ]; then \
		$(BIN)/python experiments/leakage/leakage.py && $(BIN)/python experiments/notebook_reproduction/reproduce.py && \
		$(BIN)/python experiments/models/choose.py && $(BIN)/python experiments/models/compare.py; \
	else echo "leakage, models and notebook_reproduction need real clips: VIDCLS_REAL_DATA names none, skipped"; fi

.PHONY: bench
bench: setup ## measure training and ingest against plain loops (CPU)
	$(BIN)/python experiments/benchmark/bench.py $(ARGS)

.PHONY: bench-gpu
bench-gpu: setup ## measure training and prediction against plain loops (CUDA)
	$(BIN)/python experiments/benchmark_gpu/bench_gpu.py $(ARGS)

.PHONY: torture
torture: setup ## disturb commands in the middle and check that they recover; ARGS: faults or kills, --count, --seed
	$(BIN)/python experiments/torture/torture.py $(ARGS)

.PHONY: notebooks
notebooks: setup ## run the notebooks again and keep their outputs
	$(BIN)/python notebooks/execute.py $(ARGS)

.venv/bin/uv:
	$(new_venv)

.PHONY: lock
lock: | .venv/bin/uv ## pin the requirements again (ARGS=--upgrade takes newer versions)
	echo uv | $(COMPILE) --output-file requirements-uv.txt -
	$(COMPILE) --extra sweeps --extra s3 --extra notebooks --extra dev --output-file requirements.txt pyproject.toml

.PHONY: clean
clean: ## remove caches, never data or runs
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find . \( -name .venv -o -name runs -o -name data -path ./data \) -prune -o -name __pycache__ -type d -exec rm -rf {} +
