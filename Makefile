# Verbs of this repository. `make demo` and `make test` work on a fresh clone with nothing but Python 3.11 on the machine.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
ROUNDS ?= 20
DEVICES ?= 6

.PHONY: install demo test check format wheel clean

install: $(VENV)/installed

# torch first and alone: its requirement is pinned exactly, so that no other package's range chooses another build of it.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[device,server,dev]"
	touch $@

demo: install
	$(BIN)/edgefl demo --rounds $(ROUNDS) --devices $(DEVICES)

test: install check
	$(BIN)/python -m pytest

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_floors.py

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: install
	$(BIN)/python -m build --wheel --no-isolation

clean:
	rm -rf $(VENV) build dist
