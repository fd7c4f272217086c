# `make demo` and `make test` need only Python 3.11 or newer: they make .venv and install there what they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -q
# Whatever the environment says: what is imported is compiled once, not by each of the many processes that the tests start.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-long lint format

demo: $(VENV)/.installed-export
	$(BIN)/smolite demo

# Everything on torch, which compiles nothing and so is done first; exports go to TensorFlow in a process of their own whatever
# the backend. Then what depends on the backend (tests/conftest.py) on the others.
test: $(VENV)/.installed-dev
	KERAS_BACKEND=torch $(PYTEST) -m "not long"
	KERAS_BACKEND=tensorflow $(PYTEST) -m backend
	KERAS_BACKEND=jax $(PYTEST) -m backend

# README and its like as printed, every benchmark at a toy size, and what else takes longest.
test-long: $(VENV)/.installed-dev
	KERAS_BACKEND=torch $(PYTEST) -m long

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Installs the package with an extra; again only when pyproject.toml has changed. pip would compile on one core, and all of it;
# some packages hold files that are no Python, which compileall tells by its status.
$(VENV)/.installed-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[$*]"
	$(BIN)/python -m compileall -qq -j 0 -x '/(tests|transformers/models)/' $(VENV)/lib || true
	touch $@
