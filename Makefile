# make train   trains the two towers on the embedded set
# make test    lint, types and tests
# Both make .venv and install the project first, if that has not been done.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: train test lint install clean

train: install
	$(BIN)/python launch/two_gpu.py

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: install
	$(BIN)/ruff check src launch tests
	$(BIN)/ruff format --check src launch tests
	$(BIN)/mypy

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "twotower needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch, DALI and the rest into $(VENV); the first time takes some minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV)
