#!/bin/bash
# What is put on a board, in a Debian 12 that is booted with its own systemd: install, upgrade, roll back, uninstall.
#
#     tests/debian/run.sh PYTHON WHEEL REPORT
#
# PYTHON is a 3.11 with edgefl's server extra, as Debian 12 has; WHEEL goes onto the board; REPORT is the JSON file that is
# written. EDGEFL_DEBIAN_ROOT is where user land and wheels are kept (default ~/.cache/edgefl/debian): the first run takes two
# minutes more. Where it cannot run it says why and exits with 0. The user land runs in namespaces of its own, but for the network,
# which it shares so that it finds the broker; the machine's systemd, if any, is not touched.
set -euo pipefail

PYTHON=$1 WHEEL=$(realpath "$2") REPORT=$3
HERE=$(dirname "$(realpath "$0")")
CACHE=${EDGEFL_DEBIAN_ROOT:-$HOME/.cache/edgefl/debian}
ROOT=$CACHE/root

skip() {
    printf 'skipped: %s\n' "$*"
    exit 0
}

say() {
    printf '%s\n' "$*" >&2
}

# Made under another name and renamed when it is whole: an interrupted run leaves nothing that looks like a user land.
make_root() {
    if ! command -v debootstrap >/dev/null; then
        command -v apt-get >/dev/null || skip "debootstrap is missing"
        { apt-get update -qq && apt-get install -y -qq debootstrap; } >/dev/null 2>&1 || skip "debootstrap cannot be installed"
    fi
    say "making a Debian 12 user land in $ROOT (about a minute)"
    rm -rf "$ROOT.partial"
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates,systemd,systemd-sysv \
        bookworm "$ROOT.partial" >"$CACHE/debootstrap.log" 2>&1 || skip "Debian cannot be fetched; see $CACHE/debootstrap.log"
    mv "$ROOT.partial" "$ROOT"
}

# The wheel and all that it needs, as they would be on a USB stick.
gather_wheels() {
    local digest
    digest=$(sha256sum "$WHEEL" | cut -d ' ' -f 1)
    [ "$(cat "$CACHE/wheels/for" 2>/dev/null)" != "$digest" ] || return 0
    rm -rf "$CACHE/wheels"
    mkdir "$CACHE/wheels"
    "$PYTHON" -m pip download --quiet --only-binary=:all: --dest "$CACHE/wheels" "$WHEEL" \
        2>"$CACHE/download.log" || skip "the wheels cannot be fetched; see $CACHE/download.log"
    printf '%s\n' "$digest" >"$CACHE/wheels/for"
}

[ "$(uname -s)" = Linux ] || skip "this is not Linux"
[ "$(id -u)" -eq 0 ] || skip "only root may boot another user land"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || skip "$PYTHON is not the Python of Debian 12"
unshare --pid --fork --mount --uts --ipc --cgroup true 2>/dev/null || skip "namespaces are not allowed here"
findmnt -t cgroup2 >/dev/null || skip "this kernel has no cgroup2, which systemd needs"

mkdir -p "$CACHE"
exec 9>"$CACHE/lock"
flock -n 9 || { say "error: another run is using $CACHE"; exit 1; }
[ -d "$ROOT" ] || make_root
gather_wheels
exec "$PYTHON" "$HERE/run.py" --cache "$CACHE" --report "$REPORT"
