# `make demo` and `make test` are all a newcomer needs: each sets up its own .venv first.
PYTHON ?= python3
VENV   ?= .venv
# another index for torch, e.g.  make demo TORCH_INDEX="--index-url https://download.pytorch.org/whl/cpu"
TORCH_INDEX ?=
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# small nets are fastest with one intra-op thread per process
export OMP_NUM_THREADS := 1

.PHONY: demo test check engines bench nightly clean

demo: $(VENV)/run
	$(BIN)/unlearnlab demo

test: $(VENV)/dev
	$(BIN)/python -m pytest -n 2

check: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

engines: $(VENV)/engines
	$(BIN)/python -m pytest -m "ray or slurm"

bench: $(VENV)/dev
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/augment.py
	$(BIN)/python benchmarks/metrics.py
	$(BIN)/python benchmarks/methods.py
	$(BIN)/python benchmarks/fisher.py
	$(BIN)/python benchmarks/memorisation.py
	$(BIN)/python benchmarks/proxies.py
	$(BIN)/python benchmarks/demo.py
	$(BIN)/python benchmarks/engines.py

nightly: $(VENV)/dev
	$(BIN)/python -m pytest -n 2 -m slow
	$(BIN)/python benchmarks/digits_all.py
	$(BIN)/python benchmarks/digits_rum.py
	$(BIN)/unlearnlab run digits_audit
	$(BIN)/python benchmarks/calibration.py
	$(BIN)/python benchmarks/presets.py

clean:
	rm -rf $(VENV) .unlearnlab .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# torch first and pinned: asked for by another package, it would bring gigabytes of CUDA libraries along
$(VENV)/run: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "unlearnlab needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH_INDEX) torch
	$(PIP) -e .
	touch $@

$(VENV)/dev: $(VENV)/run
	$(PIP) -e '.[dev]'
	touch $@

$(VENV)/engines: $(VENV)/dev
	$(PIP) -e '.[ray,slurm]'
	touch $@
