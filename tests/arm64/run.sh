#!/bin/bash
# One complete round with the agent on aarch64: on a board as it is, elsewhere in a Debian 12 arm64 user land under qemu.
#
#     tests/arm64/run.sh PYTHON NATIVE WHEEL REPORT
#
# PYTHON has edgefl's server and dev extras, NATIVE the device extra of this machine; WHEEL goes onto the board; REPORT is the JSON
# file that is written. EDGEFL_ARM64_ROOT is where user land and wheels are kept (default ~/.cache/edgefl/arm64): the first run
# takes ten minutes, later ones one or two. Where it cannot run it says why and exits with 0. What it mounts, registers and starts
# it also ends; packages that it installs (qemu-user-static, debootstrap) and the cache stay.
set -euo pipefail

PYTHON=$1 NATIVE=$2 WHEEL=$(realpath "$3") REPORT=$4
HERE=$(dirname "$(realpath "$0")")
CACHE=${EDGEFL_ARM64_ROOT:-$HOME/.cache/edgefl/arm64}
BINFMT=/proc/sys/fs/binfmt_misc
VENV=/opt/edgefl # as install.sh has it
ROOT='' MOUNTED='' REGISTERED='' PROC=''

skip() {
    printf 'skipped: %s\n' "$*"
    exit 0
}

say() {
    printf '%s\n' "$*" >&2
}

cleanup() {
    [ -z "$PROC" ] || umount "$ROOT/proc" || true
    [ -z "$REGISTERED" ] || echo -1 >"$BINFMT/qemu-aarch64" || true
    [ -z "$MOUNTED" ] || umount "$BINFMT" || true
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# Runs a command on the board: with a clean environment, so that nothing of this machine's leaks in.
board() {
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 ${ROOT:+chroot "$ROOT"} "$@"
}

emulate() {
    [ "$(id -u)" -eq 0 ] || skip "only root may register qemu and enter another user land"
    if ! command -v qemu-aarch64-static debootstrap >/dev/null; then
        command -v apt-get >/dev/null || skip "qemu-aarch64-static and debootstrap are missing"
        say "installing qemu-user-static and debootstrap"
        { apt-get update -qq && apt-get install -y -qq qemu-user-static debootstrap; } >/dev/null 2>&1 ||
            skip "qemu-user-static and debootstrap cannot be installed"
    fi
    if ! mountpoint -q "$BINFMT"; then
        mount -t binfmt_misc binfmt_misc "$BINFMT" 2>/dev/null || skip "this kernel has no binfmt_misc"
        MOUNTED=yes
    fi
    if [ ! -e "$BINFMT/qemu-aarch64" ]; then
        # An ELF header of 64 bits, little endian, machine 183; F: the kernel opens qemu now, so that it is found in the chroot.
        local magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
        local mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
        printf '%s' ":qemu-aarch64:M::$magic:$mask:$(command -v qemu-aarch64-static):F" >"$BINFMT/register" 2>/dev/null ||
            skip "qemu cannot be registered with binfmt_misc"
        REGISTERED=yes
    fi
    ROOT=$CACHE/root
    [ -d "$ROOT" ] || make_root
    mount -t proc proc "$ROOT/proc" || skip "proc cannot be mounted here"
    PROC=yes
}

# Made under another name and renamed when it is whole: an interrupted run leaves nothing that looks like a user land.
make_root() {
    say "making a Debian 12 arm64 user land in $ROOT (about six minutes)"
    rm -rf "$ROOT.partial"
    debootstrap --foreign --arch=arm64 --variant=minbase --include=python3,python3-venv,ca-certificates \
        bookworm "$ROOT.partial" >"$CACHE/debootstrap.log" 2>&1 || skip "Debian cannot be fetched; see $CACHE/debootstrap.log"
    chroot "$ROOT.partial" /debootstrap/debootstrap --second-stage >>"$CACHE/debootstrap.log" 2>&1
    umount "$ROOT.partial/proc" 2>/dev/null || true
    mv "$ROOT.partial" "$ROOT"
}

# The device extra from ordinary aarch64 wheels, with the board's own pip and no index. Only what has changed is installed again.
install() {
    local listed versions=() tag
    listed=$("$PYTHON" "$HERE/requirements.py" "$WHEEL")
    if [ "$(cat "$ROOT$VENV/requirements" 2>/dev/null)" != "$listed" ]; then
        say "installing on the board: $(echo $listed)"
        rm -rf "$ROOT$VENV" "$CACHE/wheels"
        mkdir -p "$CACHE/wheels"
        for tag in manylinux2014 manylinux_2_17 manylinux_2_24 manylinux_2_26 manylinux_2_27 manylinux_2_28 manylinux_2_31 \
            manylinux_2_34 manylinux_2_35 manylinux_2_36; do
            versions+=(--platform "${tag}_aarch64")
        done
        # shellcheck disable=SC2086  # one word per requirement
        "$PYTHON" -m pip download --quiet --only-binary=:all: --implementation cp --python-version 311 "${versions[@]}" \
            --dest "$CACHE/wheels" $listed 2>"$CACHE/download.log" || { cat "$CACHE/download.log" >&2; exit 1; }
        rm -rf "$ROOT/opt/wheels"
        mkdir -p "$ROOT/opt/wheels"
        cp "$CACHE/wheels"/*.whl "$ROOT/opt/wheels"
        board python3 -m venv "$VENV"
        install_wheel
        printf '%s\n' "$listed" >"$ROOT$VENV/requirements"
    elif ! cmp -s "$WHEEL" "$ROOT/opt/wheels/$(basename "$WHEEL")"; then
        install_wheel --force-reinstall --no-deps
    fi
}

install_wheel() {
    cp "$WHEEL" "$ROOT/opt/wheels"
    board "$VENV/bin/python" -m pip install --quiet --no-index --no-cache-dir --find-links /opt/wheels "$@" \
        "edgefl-fleet[device] @ file:///opt/wheels/$(basename "$WHEEL")"
    cp "$HERE/../../devices/trim.sh" "$ROOT/opt/trim.sh"
    board sh /opt/trim.sh "$VENV"
}

mkdir -p "$CACHE"
exec 9>"$CACHE/lock"
flock -n 9 || { say "error: another run is using $CACHE"; exit 1; }

case $(uname -sm) in
    'Linux aarch64')
        VENV=$CACHE/venv
        [ -d "$VENV" ] || "$NATIVE" -m venv "$VENV"
        "$VENV/bin/python" -m pip install --quiet --force-reinstall "edgefl-fleet[device] @ file://$WHEEL"
        ;;
    'Linux x86_64')
        emulate
        install
        ;;
    *) skip "this machine is neither aarch64 nor x86-64 Linux" ;;
esac
"$PYTHON" "$HERE/run.py" --root "${ROOT:-/}" --board "$VENV" --native "$NATIVE" --report "$REPORT"
