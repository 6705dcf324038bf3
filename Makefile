# Verbs of this repository. `make demo` and `make test` work on a fresh clone with nothing but Python 3.11 on the machine.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
ROUNDS ?= 20
DEVICES ?= 6
# Workers of the tests. Many of these wait for processes, so there is one more than a small machine has cores; 700 MB each.
WORKERS ?= 3

# What a board has: stock ONNX Runtime, which the wheel's own markers choose from Python 3.13 on.
STOCK := .venv-stock
STOCK_PYTHON ?= $(shell python3.13 -c 'print("python3.13")' 2>/dev/null || echo $(PYTHON))

.PHONY: install demo test test-stock test-arm64 test-debian check format wheel clean

install: $(VENV)/installed

# torch first and alone: its requirement is pinned exactly, so that no other package's range chooses another build of it.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[device,server,simulate,dev]"
	touch $@

demo: install
	$(BIN)/edgefl demo --rounds $(ROUNDS) --devices $(DEVICES)

# Hundreds of processes are started, each of which would compile the package anew if Python were told to keep nothing.
test: install check
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# The wheel in an environment without torch and onnx; tests that need these skip.
test-stock: wheel
	tests/stock.sh $(STOCK_PYTHON) $(STOCK) dist/edgefl_fleet-*.whl

# A round with the agent on aarch64, natively or under qemu (as root); skips with a reason where neither can be had.
test-arm64: wheel
	tests/stock.sh $(STOCK_PYTHON) $(STOCK) dist/edgefl_fleet-*.whl --only-install
	tests/arm64/run.sh $(BIN)/python $(STOCK)/bin/python dist/edgefl_fleet-*.whl build/arm64.json

# What is put on a board, in a Debian 12 booted with its own systemd (as root); skips with a reason where it cannot.
test-debian: wheel
	tests/debian/run.sh $(BIN)/python dist/edgefl_fleet-*.whl build/debian.json

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_floors.py

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: install
	rm -f dist/edgefl_fleet-*.whl
	$(BIN)/python -m build --wheel --no-isolation

clean:
	rm -rf $(VENV) $(STOCK) build dist
