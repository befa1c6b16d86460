# `make demo` and `make test` work on a fresh machine with Python >= 3.11: each makes .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test soak lint clean

demo: $(VENV)/installed
	$(BIN)/python launch.py demo

test: $(VENV)/installed-dev lint
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadgroup --no-loadscope-reorder

# Long tests, such as the whole demo with its promised quality.
soak: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m soak

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy distgan cluster tune benchmarks launch.py

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV)
