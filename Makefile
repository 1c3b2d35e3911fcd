# `make demo` and `make test` set up everything themselves, in .venv.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint clean

demo: .venv/demo.stamp
	$(BIN)/gacd demo --out demo

test: .venv/test.stamp
	$(BIN)/python -m pytest

lint: .venv/dev.stamp
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# pip chooses the torch that fits the machine; uv fetches the rest in parallel and leaves torch as it is.
.venv/torch.stamp: requirements/torch.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-compile -r requirements/torch.txt uv
	touch $@

.venv/demo.stamp: .venv/torch.stamp pyproject.toml
	$(BIN)/uv pip install -q -p .venv -c requirements/torch.txt -e .
	touch $@

.venv/test.stamp: .venv/demo.stamp
	$(BIN)/uv pip install -q -p .venv -c requirements/torch.txt -e '.[test]'
	touch $@

.venv/dev.stamp: .venv/test.stamp
	$(BIN)/uv pip install -q -p .venv -c requirements/torch.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv demo
