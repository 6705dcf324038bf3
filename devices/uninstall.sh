#!/bin/sh
# Takes edgefl off this board. Run as root:
#
#     sudo sh /etc/edgefl/uninstall.sh [--purge]
#
# The service and the program go; the device's identity (/etc/edgefl), what it has learned (/var/lib/edgefl), drop-ins and
# its user stay, so that install.sh can bring it back. With --purge these go too: the private key, updates that are not sent, everything. Running it
# again does no harm.
set -eu

LINK=/opt/edgefl
ENVIRONMENTS=/opt/edgefl.d
CONFIG=/etc/edgefl
STATE=/var/lib/edgefl
SERVICE=edgefl-device.service
UNIT=/etc/systemd/system/$SERVICE

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

remove_service() {
    if [ -d /run/systemd/system ]; then
        systemctl disable --quiet --now "$SERVICE" 2>/dev/null || true # it may be gone already
        ! systemctl is-active --quiet "$SERVICE" || fail "the service does not stop. See: systemctl status edgefl-device"
    fi
    rm -f "$UNIT"
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload
        systemctl reset-failed "$SERVICE" 2>/dev/null || true
    fi
}

purge() {
    rm -rf "$CONFIG" "$STATE" "$UNIT.d"
    ! id edgefl >/dev/null 2>&1 || userdel edgefl
}

main() {
    PURGE=''
    for argument in "$@"; do
        case $argument in
            --purge) PURGE=yes ;;
            *) fail "unknown argument $argument. Usage: uninstall.sh [--purge]" ;;
        esac
    done
    [ "$(id -u)" -eq 0 ] || fail "this needs root. Run: sudo sh $0 $*"
    remove_service
    rm -rf "$LINK" "$LINK.new" "$ENVIRONMENTS"
    if [ -n "$PURGE" ]; then
        purge
        printf 'edgefl is gone from this board, with its key and everything that it had learned\n'
    else
        printf 'edgefl is gone; its identity and state stay in %s and %s (--purge removes them)\n' "$CONFIG" "$STATE"
    fi
}

main "$@"
