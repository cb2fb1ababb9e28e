# Needs Python 3.11 or newer, make, and the network to PyPI. Everything lands in .venv and demo/.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint clean

demo: $(VENV)/.installed
	@test -e demo/edgepress.yaml || $(BIN)/edgepress init demo --example digits
	$(BIN)/edgepress run demo/edgepress.yaml --out demo/run

test: $(VENV)/.installed
	$(BIN)/edgepress doctor --install tflite-runtime
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --max-worker-restart 0

test-slow: $(VENV)/.installed
	$(BIN)/edgepress doctor --install tflite-runtime
	$(BIN)/python -m pytest -m slow --durations 10

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch first and alone: a build that is at hand (CPU) is kept, and nothing later replaces it.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]" --editable examples/numpy-target
	touch $@

clean:
	rm -rf $(VENV) demo build dist .edgepress runs
