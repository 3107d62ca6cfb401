# make train             trains the two towers on the embedded set
# make train TORCH=cuda12   the same for NVIDIA drivers older than 580: torch and DALI for CUDA 12
# make train TORCH=cpu   the same on the CPU, with torch's build for it: 0.6 GB to download instead of 3.2
# make test              lint, types, layers and all tests
# make test-gpu          the tests that need one GPU, or two
# make campaigns         thousands of random attempts to break it, of which the tests try a few; SEED=1 draws others
# make audit             compares what is installed with the known vulnerabilities; needs the network
# make audit ADVISORIES=DIR   the same with a copy of the advisories on disk, without the network
# make quick             the same as test without the slow tests: under a minute
# Each makes .venv and installs what it needs, if that has not been done: training less than the tests.

PYTHON      ?= python3
TORCH       ?= default
TORCH_INDEX ?= https://download.pytorch.org/whl/$(TORCH:cuda12=cu126)
# Two builds of DALI in one environment overwrite each other, so it is never a dependency that both would share.
DALI        := $(if $(filter cuda12,$(TORCH)),cuda12,cuda13)
ADVISORIES  ?=
SEED        ?= 0
DEVICE      := $(if $(filter cpu,$(TORCH)),machine.device=cpu)
VENV        := .venv
BIN         := $(VENV)/bin
PIP         := $(BIN)/python -m pip install --quiet --disable-pip-version-check

ifeq ($(filter $(TORCH),default cuda12 cpu),)
$(error TORCH=$(TORCH) is not known; TORCH=cpu takes torch's build for CPUs, TORCH=cuda12 that for older NVIDIA drivers, and without it pip chooses)
endif

.PHONY: train test test-gpu quick campaigns audit lint install clean

train: install
	$(BIN)/python launch/two_gpu.py $(DEVICE)

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The tests of the other targets see no GPU. What is skipped is listed with its reason, and counted.
test-gpu: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m gpu -rs

quick: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu" -q

campaigns: $(VENV)/installed-dev
	cd tests && ../$(BIN)/python -m campaigns --seed $(SEED)

# The local part of a version (+cpu) names a build, and no version that a database knows.
audit: $(VENV)/installed-dev $(VENV)/audit/bin/pip-audit
	$(BIN)/python -m pip --disable-pip-version-check list --format freeze --exclude-editable > $(VENV)/audit/builds.txt
	sed 's/+.*//' $(VENV)/audit/builds.txt > $(VENV)/audit/installed.txt
	$(if $(ADVISORIES),$(BIN)/python deploy/audit_offline.py '$(ADVISORIES)') $(VENV)/audit/bin/pip-audit --strict --disable-pip --no-deps -r $(VENV)/audit/installed.txt

$(VENV)/audit/bin/pip-audit: | $(VENV)/made
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit

lint: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml $(VENV)/torch-$(TORCH)
	@echo "installing what training needs into $(VENV); the first time takes some minutes"
	$(PIP) --editable '.[$(DALI)]'
	@touch $@

$(VENV)/installed-dev: pyproject.toml $(VENV)/torch-$(TORCH)
	@echo "installing what training and tests need into $(VENV); the first time takes some minutes"
	$(PIP) --editable '.[dev,$(DALI)]'
	@touch $@ $(VENV)/installed

# Whatever torch is there already is left alone.
$(VENV)/torch-default: | $(VENV)/made
	@touch -t 200001010000 $@  # older than what may be installed already

# Before all else, as pip would take another build for the rest; which versions, pyproject.toml says.
$(VENV)/torch-cpu $(VENV)/torch-cuda12: | $(VENV)/made
	@if [ -e $(VENV)/installed ] && $(BIN)/python -c 'import sys, torch; has = "cuda" + (torch.version.cuda or "").partition(".")[0]; sys.exit(has in ("$(TORCH)", "cuda" if "$(TORCH)" == "cpu" else ""))'; then \
		echo "$(VENV) has another build of torch, which TORCH=$(TORCH) does not replace; remove it first: make clean"; exit 1; fi
	$(PIP) --index-url $(TORCH_INDEX) "$$($(BIN)/python -c 'import tomllib; print(*[one for one in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"] if one.startswith("torch")])')"
	@touch $@

# The pip that comes with Python has vulnerabilities that are known.
$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "twotower needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments: Debian and Ubuntu have that in a package of its own (apt install python3-venv)."; \
		echo "Install it, or choose another Python: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv --upgrade-deps $(VENV)
	@touch $@

clean:
	rm -rf $(VENV)
