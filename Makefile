# make train             trains the two towers on the embedded set
# make train TORCH=cpu   the same with torch's build for CPUs: 0.6 GB to download instead of 3.1
# make test              lint, types, layers and all tests
# make quick             the same without the slow tests: under a minute
# Each makes .venv and installs what it needs, if that has not been done: training less than the tests.

PYTHON      ?= python3
TORCH       ?= default
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
VENV        := .venv
BIN         := $(VENV)/bin
PIP         := $(BIN)/python -m pip install --quiet --disable-pip-version-check

ifeq ($(filter $(TORCH),default cpu),)
$(error TORCH=$(TORCH) is not known; TORCH=cpu takes torch's build for CPUs, and without it pip chooses)
endif

.PHONY: train test quick lint install clean

train: install
	$(BIN)/python launch/two_gpu.py

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

quick: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu" -q

lint: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml $(VENV)/torch-$(TORCH)
	@echo "installing what training needs into $(VENV); the first time takes some minutes"
	$(PIP) --editable .
	@touch $@

$(VENV)/installed-dev: pyproject.toml $(VENV)/torch-$(TORCH)
	@echo "installing what training and tests need into $(VENV); the first time takes some minutes"
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/installed

# Whatever torch is there already is left alone.
$(VENV)/torch-default: | $(VENV)/made
	@touch -t 200001010000 $@  # older than what may be installed already

# Before all else, as pip would take another build for the rest; which versions, pyproject.toml says.
$(VENV)/torch-cpu: | $(VENV)/made
	@if [ -e $(VENV)/installed ] && $(BIN)/python -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; then \
		echo "$(VENV) has torch's build for GPUs, which TORCH=cpu does not replace; remove it first: make clean"; exit 1; fi
	$(PIP) --index-url $(TORCH_INDEX) "$$($(BIN)/python -c 'import tomllib; print(*[one for one in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"] if one.startswith("torch")])')"
	@touch $@

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "twotower needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments: Debian and Ubuntu have that in a package of its own (apt install python3-venv)."; \
		echo "Install it, or choose another Python: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

clean:
	rm -rf $(VENV)
