# make run: the whole pipeline on Darkroom.  make test: the test suite.  make lint: ruff.
# Each first makes .venv and installs requirements.txt into it, if that has not been done.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lint format clean
.venv/installed: requirements.txt
	@echo "==> installing requirements.txt into .venv"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	@touch $@

run: .venv/installed
	@echo "==> 1/4 collecting PPO histories (1 to 2 minutes on 2 cores)"
	$(BIN)/python collect.py
	@echo "==> 2/4 collecting histories of an explorer that learns from them (seconds)"
	$(BIN)/python collect.py --source explorer
	@echo "==> 3/4 training AD with compressed context (1 to 2 minutes on 2 cores)"
	$(BIN)/python train.py --source explorer --model-config config/model/ad_dr_explorer_regions.yaml
	@echo "==> 4/4 evaluating on the held-out goals (seconds)"
	$(BIN)/python evaluate.py

test: .venv/installed
	@echo "==> running the tests (about 4 minutes on 2 cores)"
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .pytest_cache .ruff_cache
