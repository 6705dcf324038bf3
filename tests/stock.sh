#!/bin/sh
# Tests a board's environment on this machine: stock ONNX Runtime, neither torch nor onnx, and the wheel instead of the tree.
#
#     tests/stock.sh PYTHON VENV WHEEL [--only-install | PYTEST ARGUMENTS]
#
# From Python 3.13 on the wheel's own markers choose stock onnxruntime; before it is put in the training build's place. Tests that
# need more than a board has skip themselves.
set -eu

PYTHON=$1 VENV=$2 WHEEL=$(realpath "$3")
shift 3

pip() {
    "$VENV/bin/python" -m pip --disable-pip-version-check "$@"
}

"$VENV/bin/python" -c '' 2>/dev/null || "$PYTHON" -m venv --clear "$VENV"
if ! cmp -s "$WHEEL" "$VENV/installed.whl"; then
    pip install --quiet "edgefl-fleet[device] @ file://$WHEEL" "pytest>=8" "pytest-timeout>=2.3" "hypothesis>=6.100"
    pip install --quiet --force-reinstall --no-deps "edgefl-fleet @ file://$WHEEL"
    if pip show --quiet onnxruntime-training-cpu 2>/dev/null; then
        # What the training build alone wants is not on a board either.
        pip uninstall --quiet --yes onnxruntime-training-cpu onnx h5py sympy cerberus
        pip install --quiet --force-reinstall --no-deps onnxruntime
    fi
    cp "$WHEEL" "$VENV/installed.whl"
fi
"$VENV/bin/python" - <<'END'
import sys
from importlib.util import find_spec

from edgefl.engine.runtime import available_engines, onnxruntime

found = [name for name in ("torch", "onnx", "onnxscript") if find_spec(name)]
if available_engines() != ("portable",) or found:
    sys.exit(f"error: no board's environment: engines {available_engines()}, installed {found}")
print(f"Python {sys.version.split()[0]}, stock onnxruntime {onnxruntime().__version__}")
END
[ "${1:-}" = --only-install ] || "$VENV/bin/pytest" "$@"
