#!/bin/sh
# Turns this board into the device that this bundle was made for. Run as root, in the bundle's directory:
#
#     sudo sh ./install.sh [WHEEL_OR_REQUIREMENT]
#
# It makes a user, a Python environment in /opt/edgefl, copies the bundle to /etc/edgefl and enables the service. Running it
# again repairs or upgrades; the learned state in /var/lib/edgefl is never touched. The argument is what pip installs, for
# example a wheel on a USB stick; without it, edgefl-fleet from the package index that pip is configured for.
set -eu

PREFIX=/opt/edgefl
CONFIG=/etc/edgefl
STATE=/var/lib/edgefl
UNIT=/etc/systemd/system/edgefl-device.service
PACKAGE=${1:-edgefl-fleet}
NEED_MB=400

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

say() {
    printf '%s\n' "$*"
}

# --- checks: everything that can be known before anything is changed ---
BUNDLE=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
# A ready bundle brings key and certificate; with a claim the board makes its own key and asks for the certificate.
if [ -r "$BUNDLE/claim.toml" ]; then PAIR=; else PAIR="device.key device.crt"; fi
for file in device.toml $PAIR ca.crt edgefl-device.service trim.sh; do
    [ -r "$BUNDLE/$file" ] || fail "$BUNDLE/$file is missing. Copy the whole bundle."
done
[ "$(id -u)" -eq 0 ] || fail "this needs root. Run: sudo sh $0"
[ -d /run/systemd/system ] || fail "this board does not run systemd. Start '$PREFIX/bin/edgefl device run BUNDLE' another way."

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

NAME=$(sed -n 's/^id = "\(.*\)"$/\1/p' "$BUNDLE/device.toml")
[ -n "$NAME" ] || fail "$BUNDLE/device.toml names no device."
if [ -r "$CONFIG/device.toml" ]; then
    OLD=$(sed -n 's/^id = "\(.*\)"$/\1/p' "$CONFIG/device.toml")
    if [ "$OLD" != "$NAME" ]; then
        fail "this board is device $OLD already. Remove $CONFIG and /var/lib/edgefl first if it shall become $NAME."
    fi
fi

# --- the user and the program ---
if ! id edgefl >/dev/null 2>&1; then
    useradd --system --home-dir "$STATE" --no-create-home --shell /usr/sbin/nologin edgefl
fi
[ -x "$PREFIX/bin/python" ] || python3 -m venv "$PREFIX"
"$PREFIX/bin/python" -m pip install --quiet --no-cache-dir --upgrade "$PACKAGE"
sh "$(dirname "$0")/trim.sh" "$PREFIX"
"$PREFIX/bin/edgefl" --version >/dev/null || fail "edgefl does not start from $PREFIX."

# --- the bundle: key and claim are readable by root and the service only; the service deletes the claim when it is used ---
install -d -m 0750 -o root -g edgefl "$CONFIG"
for file in device.toml ca.crt; do
    install -m 0644 -o root -g edgefl "$BUNDLE/$file" "$CONFIG/$file"
done
if [ -n "$PAIR" ]; then
    install -m 0640 -o root -g edgefl "$BUNDLE/device.key" "$CONFIG/device.key"
    install -m 0644 -o root -g edgefl "$BUNDLE/device.crt" "$CONFIG/device.crt"
else
    install -d -m 0700 -o edgefl -g edgefl "$STATE"
    install -m 0600 -o edgefl -g edgefl "$BUNDLE/claim.toml" "$STATE/claim.toml"
fi
install -m 0644 -o root -g root "$BUNDLE/edgefl-device.service" "$UNIT"

# --- the service ---
systemctl daemon-reload
systemctl enable edgefl-device.service
systemctl restart edgefl-device.service
say "device $NAME is installed; see: systemctl status edgefl-device"
if [ "$BUNDLE" != "$CONFIG" ]; then
    say "delete $BUNDLE now: it holds a copy of the private key or of the claim"
fi
