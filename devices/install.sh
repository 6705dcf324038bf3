#!/bin/sh
# Turns this board into the device that this bundle was made for, or upgrades it. Run as root, in the bundle's directory:
#
#     sudo sh ./install.sh [--wheels DIR] [WHEEL_OR_REQUIREMENT]
#
# It makes a user, a Python environment, copies the bundle to /etc/edgefl and starts the service. WHEEL_OR_REQUIREMENT is what pip
# installs, by default edgefl-fleet; with --wheels, from the wheels in a directory (a USB stick) alone and without a network,
# otherwise from the package index that pip is configured for.
#
# Model: each installation has an environment of its own, /opt/edgefl.d/NUMBER; /opt/edgefl is a link to the one in use, and is
# switched when the new one is complete and has been tried. If the service does not start with it, link, unit and configuration
# go back to what they were, and the old one is started again. The learned state in /var/lib/edgefl is never touched. Running it
# again repairs; /etc/edgefl is itself a bundle: `sh /etc/edgefl/install.sh NEW_WHEEL` upgrades.
set -eu

LINK=/opt/edgefl
ENVIRONMENTS=/opt/edgefl.d
CONFIG=/etc/edgefl
SERVICE=edgefl-device.service
STATE=/var/lib/edgefl
UNIT=/etc/systemd/system/$SERVICE
BEFORE=$ENVIRONMENTS/before
NEED_MB=400
SETTLE=${EDGEFL_SETTLE:-5} # seconds that the service must live after it has said that it is ready

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

say() {
    printf '%s\n' "$*"
}

arguments() {
    PACKAGE='' WHEELS=''
    while [ $# -gt 0 ]; do
        case $1 in
            --wheels)
                [ $# -ge 2 ] || fail "--wheels needs a directory."
                WHEELS=$2
                shift
                ;;
            -*) fail "unknown option $1. Usage: install.sh [--wheels DIR] [WHEEL_OR_REQUIREMENT]" ;;
            *)
                [ -z "$PACKAGE" ] || fail "one wheel or requirement at most, found '$PACKAGE' and '$1'."
                PACKAGE=$1
                ;;
        esac
        shift
    done
    case $PACKAGE in
        *.whl) [ -r "$PACKAGE" ] || fail "there is no wheel $PACKAGE." ;;
    esac
    if [ -n "$WHEELS" ]; then
        [ -d "$WHEELS" ] || fail "there is no directory $WHEELS."
        case $PACKAGE in
            *.whl) ;;
            *)
                set -- "$WHEELS"/edgefl_fleet-*.whl
                [ -e "$1" ] || fail "$WHEELS holds no edgefl_fleet wheel."
                ;;
        esac
    fi
    PACKAGE=${PACKAGE:-edgefl-fleet}
}

# Everything that can be known before anything is changed.
check_bundle() {
    for file in device.toml ca.crt root.json "$SERVICE" trim.sh uninstall.sh; do
        [ -r "$BUNDLE/$file" ] || fail "$BUNDLE/$file is missing. Copy the whole bundle."
    done
    if [ ! -r "$BUNDLE/claim.toml" ]; then # a claim fetches the other two
        for file in device.key device.crt; do
            [ -r "$BUNDLE/$file" ] || fail "$BUNDLE/$file is missing. Copy the whole bundle."
        done
    fi
    NAME=$(sed -n 's/^id = "\(.*\)"$/\1/p' "$BUNDLE/device.toml")
    [ -n "$NAME" ] || fail "$BUNDLE/device.toml names no device."
}

check_board() {
    [ "$(id -u)" -eq 0 ] || fail "this needs root. Run: sudo sh $0"
    [ -d /run/systemd/system ] || fail "this board does not run systemd. Start '$LINK/bin/edgefl device run BUNDLE' another way."
    case $(uname -m) in
        aarch64 | x86_64) ;;
        *) fail "$(uname -m) cannot train: ONNX Runtime has no wheels for it. Use a 64-bit operating system." ;;
    esac
    command -v python3 >/dev/null 2>&1 || fail "python3 is missing. Run: apt install python3 python3-venv"
    python3 -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' ||
        fail "Python 3.11 to 3.13 is needed, found $(python3 --version 2>&1)."
    python3 -c 'import ensurepip' 2>/dev/null || fail "python3-venv is missing. Run: apt install python3-venv"
    free_mb=$(df -Pk /opt | awk 'NR == 2 { print int($4 / 1024) }')
    [ "$free_mb" -ge "$NEED_MB" ] || fail "/opt has $free_mb MB free, $NEED_MB MB are needed."
    if [ -r "$CONFIG/device.toml" ]; then
        old=$(sed -n 's/^id = "\(.*\)"$/\1/p' "$CONFIG/device.toml")
        [ "$old" = "$NAME" ] ||
            fail "this board is device $old already. Run 'sh $CONFIG/uninstall.sh --purge' first if it shall become $NAME."
    fi
}

make_user() {
    id edgefl >/dev/null 2>&1 ||
        useradd --system --home-dir /var/lib/edgefl --no-create-home --shell /usr/sbin/nologin edgefl
}

# Of the wheels that are installed; empty when they come from an index, which may have newer ones at any time.
fingerprint() {
    case $PACKAGE in
        *.whl) wheel=$PACKAGE ;;
        *) wheel='' ;;
    esac
    [ -n "$wheel$WHEELS" ] || return 0
    { printf '%s\n' "${PACKAGE##*/}"; cat ${wheel:+"$wheel"} ${WHEELS:+"$WHEELS"/*.whl}; } | sha256sum | cut -d ' ' -f 1
}

# Starts, finds its libraries, and can train.
works() {
    "$1/bin/edgefl" --version >/dev/null 2>&1 &&
        "$1/bin/python" -c 'from edgefl.engine.runtime import onnxruntime; onnxruntime()' >/dev/null 2>&1
}

# Sets OLD and NEW, which are the same when there is nothing to install.
make_environment() {
    print=$(fingerprint)
    if [ -L "$LINK" ]; then
        OLD=$(readlink -f "$LINK")
    elif [ -d "$LINK" ]; then # from before there were several
        mkdir -p "$ENVIRONMENTS"
        mv "$LINK" "$ENVIRONMENTS/0"
        OLD=$ENVIRONMENTS/0
        switch "$OLD"
    fi
    if [ -n "$OLD" ] && [ -n "$print" ] && [ "$(cat "$OLD/fingerprint" 2>/dev/null)" = "$print" ] && works "$OLD"; then
        NEW=$OLD
        return
    fi
    number=1
    while [ -e "$ENVIRONMENTS/$number" ]; do number=$((number + 1)); done
    NEW=$ENVIRONMENTS/$number
    HALF=$NEW
    python3 -m venv "$NEW"
    "$NEW/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check \
        ${WHEELS:+--no-index --find-links "$WHEELS"} "$PACKAGE"
    sh "$BUNDLE/trim.sh" "$NEW"
    works "$NEW" || fail "the new edgefl does not start. Nothing has been changed; '$PACKAGE' does not fit this board."
    printf '%s\n' "$print" >"$NEW/fingerprint"
    sync -f "$NEW"
}

# One rename: at every instant there is an environment.
switch() {
    ln -sfn "$1" "$LINK.new"
    mv -T "$LINK.new" "$LINK"
}

# The key is readable by root and the service's group only, a claim's secret by the service.
copy_bundle() {
    rm -rf "$BEFORE"
    mkdir -m 0700 "$BEFORE"
    CHANGED=yes
    [ ! -d "$CONFIG" ] || cp -a "$CONFIG" "$BEFORE/config"
    [ ! -f "$UNIT" ] || cp -a "$UNIT" "$BEFORE/unit"
    install -d -m 0750 -o root -g edgefl "$CONFIG"
    if [ "$BUNDLE" != "$CONFIG" ]; then
        [ ! -f "$BUNDLE/device.key" ] || install -m 0640 -o root -g edgefl "$BUNDLE/device.key" "$CONFIG/device.key"
        if [ -f "$BUNDLE/claim.toml" ]; then # the service deletes it when it has been used, and may write its state only
            install -d -m 0700 -o edgefl -g edgefl "$STATE"
            install -m 0600 -o edgefl -g edgefl "$BUNDLE/claim.toml" "$STATE/claim.toml"
        fi
        for file in device.toml device.crt ca.crt root.json; do
            [ ! -f "$BUNDLE/$file" ] || install -m 0644 -o root -g edgefl "$BUNDLE/$file" "$CONFIG/$file"
        done
        for file in install.sh uninstall.sh trim.sh "$SERVICE"; do
            install -m 0644 -o root -g root "$BUNDLE/$file" "$CONFIG/$file"
        done
        [ ! -f "$BUNDLE/camera.conf" ] || install -m 0644 -o root -g root "$BUNDLE/camera.conf" "$CONFIG/camera.conf"
    fi
    install -m 0644 -o root -g root "$BUNDLE/$SERVICE" "$UNIT"
}

# The service is up: it has said that it is ready, and still lives a little later.
start() {
    systemctl daemon-reload
    systemctl enable --quiet "$SERVICE"
    systemctl restart "$SERVICE" || return 1
    sleep "$SETTLE"
    systemctl is-active --quiet "$SERVICE"
}

go_back() {
    switch "$OLD"
    [ ! -d "$BEFORE/config" ] || cp -a "$BEFORE/config/." "$CONFIG"
    [ ! -f "$BEFORE/unit" ] || cp -a "$BEFORE/unit" "$UNIT"
    rm -rf "$BEFORE"
    systemctl daemon-reload
    systemctl restart "$SERVICE" || true
}

tidy() {
    rm -rf "$BEFORE"
    for path in "$ENVIRONMENTS"/*; do
        [ "$path" = "$NEW" ] || [ ! -d "$path" ] || rm -rf "$path"
    done
}

# Whatever ended this too early: back to what was, and what was begun goes.
cleanup() {
    [ -n "$HALF" ] || return 0
    [ -z "$CHANGED" ] || [ -z "$OLD" ] || go_back
    [ "$(readlink -f "$LINK")" = "$HALF" ] || rm -rf "$HALF"
}

main() {
    HALF='' CHANGED='' OLD='' # HALF: the environment that is being made
    BUNDLE=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
    arguments "$@"
    check_bundle
    check_board
    mkdir -p "$ENVIRONMENTS"
    exec 9>"$ENVIRONMENTS/lock"
    flock -n 9 || fail "another installation is running."
    trap cleanup EXIT
    trap 'exit 130' INT TERM HUP

    make_user
    make_environment
    copy_bundle
    switch "$NEW"
    if start; then
        HALF=''
        tidy
        say "device $NAME is installed; see: systemctl status edgefl-device"
        [ "$BUNDLE" = "$CONFIG" ] || say "delete $BUNDLE now: it holds a copy of the private key or of the claim"
    elif [ -n "$OLD" ] && [ "$OLD" != "$NEW" ]; then
        fail "the service does not start with the new edgefl; the old one is back. See: journalctl -u edgefl-device"
    else
        HALF=''
        rm -rf "$BEFORE"
        fail "device $NAME is installed, but the service does not start. See: journalctl -u edgefl-device"
    fi
}

main "$@"
