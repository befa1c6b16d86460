# `make demo` and `make test` work on a fresh machine with Python >= 3.11: each makes .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test soak lint lock clean

demo: $(VENV)/installed
	$(BIN)/python launch.py demo

# A process a core, of one thread each: more threads than cores wait for each other for minutes. A test that
# takes its process down ends the run: with a process in its place, pytest-xdist waits for ever.
test: $(VENV)/installed-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --max-worker-restart 0 \
		--dist loadfile --no-loadscope-reorder

# Long tests, such as the whole demo with its promised quality.
soak: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m soak

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy distgan cluster tune benchmarks launch.py

# The locks of the container image. PyPI's torch for Linux is the CUDA build; the CPU build is on PyTorch's
# own index, or lies as a wheel in a folder: make lock TORCH_CPU=FOLDER.
TORCH_CPU ?= https://download.pytorch.org/whl/cpu/torch/
LOCK = $(BIN)/uv pip compile --quiet --generate-hashes --only-binary :all: --no-binary deepspeed \
	--python-version 3.11 --python-platform x86_64-manylinux_2_28 --custom-compile-command 'make lock'
BUILD = k8s/image/requirements-build.in
lock: $(VENV)/installed-dev
	$(LOCK) $(BUILD) --output-file k8s/image/requirements-build.txt
	$(LOCK) pyproject.toml $(BUILD) --output-file k8s/image/requirements-cuda.txt
	$(LOCK) pyproject.toml $(BUILD) --find-links $(TORCH_CPU) --output-file k8s/image/requirements-cpu.txt

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
