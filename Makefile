# make demo   the three scripts on synthetic faces, from nothing to the metrics table
# make test   ruff and the quick tests
# make test-slow   all tests: 20 kills, 20,000 damaged files, several workers (about an hour)
# make bench  every benchmark as one table of ratios (a quiet machine, about half an hour)
# All make .venv with the pinned requirements first; `make .venv` makes the environment alone.

PYTHON ?= python3
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo

.PHONY: demo test test-slow bench lint clean

$(VENV): requirements.txt tests/requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is $$($(PYTHON) --version 2>&1); Python 3.11 or newer is needed. Try: make PYTHON=python3.12" >&2; exit 2; }
	@started=$$SECONDS; rm -rf $(VENV); $(PYTHON) -m venv $(VENV) \
	  && $(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r tests/requirements.txt -e . \
	  || { rm -rf $(VENV); exit 1; }; echo "packages installed in $$((SECONDS - started)) s"
	@touch $(VENV)

demo: $(VENV)
	@started=$$SECONDS; set -e; rm -rf $(DEMO)/runs/demo; \
	$(BIN)/python pca_builder.py --data-dir $(DEMO)/data --output $(DEMO)/shape_models; \
	$(BIN)/python train.py --data-dir $(DEMO)/data --shape-model $(DEMO)/shape_models/synthetic_pca90.npz \
	  --loss asm --input-size 64 --epochs 10 --batch-size 16 --lr 2.5e-3 --augment paper --output $(DEMO)/runs --name demo; \
	$(BIN)/python evaluate.py $(DEMO)/runs/demo/best.keras --mean-shape $(DEMO)/shape_models/synthetic_pca90.npz \
	  --data-dir $(DEMO)/data --output $(DEMO)/evaluation; \
	echo "demo done in $$((SECONDS - started)) s; CED plot: $(DEMO)/evaluation/ced.png"

lint: $(VENV)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

bench: $(VENV)
	@$(BIN)/python tests/benchmarks/run_all.py

test: lint
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=10

test-slow: lint
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "slow or not slow"

clean:
	rm -rf $(DEMO) build *.egg-info .pytest_cache .ruff_cache
