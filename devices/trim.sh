#!/bin/sh
# Takes from a board's Python environment what only developers of its packages use: their tests, and ONNX Runtime's tools for
# preparing models, which is the server's work. About 25 MB. Running it again does no harm; pip upgrades and removes such packages
# as usual.
#
#     sh trim.sh /opt/edgefl
set -eu

if [ $# -ne 1 ] || [ ! -x "$1/bin/python" ]; then
    echo "usage: trim.sh ENVIRONMENT, which was made by python3 -m venv" >&2
    exit 2
fi

SITE=$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
[ -d "$SITE/numpy" ] || { echo "trim.sh: no packages in $SITE" >&2; exit 1; }

find "$SITE/numpy" -type d -name tests -prune -exec rm -rf {} +
for part in backend datasets quantization tools transformers; do
    rm -rf "$SITE/onnxruntime/$part"
done
