#!/bin/bash
# Boots the user land of tests/debian/run.sh with systemd as its process 1, until it is killed.
#
#     boot.sh ROOT SCRATCH SHARED GROUP
#
# ROOT stays as it is: changes go to SCRATCH (an overlay). SHARED appears as /mnt. GROUP is a cgroup2 directory that exists.
# What it could do to the machine it cannot: the kernel's settings are read-only, and it may not set the clock.
set -euo pipefail

echo $$ >"$4/cgroup.procs"
mkdir -p "$2/upper" "$2/work" "$2/root"
# shellcheck disable=SC2016 # the inner shell expands it
exec unshare --pid --fork --kill-child --mount --uts --ipc --cgroup bash -euc '
    root=$2/root
    mount --make-rprivate /
    mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$root"
    mount -t proc proc "$root/proc"
    mount --bind "$root/proc/sys" "$root/proc/sys"
    mount -o remount,ro,bind "$root/proc/sys"
    mount -t sysfs -o ro sysfs "$root/sys"
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    mount -t tmpfs -o mode=755 tmpfs "$root/dev"
    mkdir "$root/dev/pts" "$root/dev/shm"
    for node in null zero full random urandom tty; do
        touch "$root/dev/$node"
        mount --bind "/dev/$node" "$root/dev/$node"
    done
    mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
    ln -s pts/ptmx "$root/dev/ptmx"
    ln -s /proc/self/fd "$root/dev/fd"
    mount --bind "$3" "$root/mnt"
    cd "$root"
    mkdir -p outside
    pivot_root . outside
    umount -l /outside
    exec setpriv --bounding-set=-sys_time,-sys_module,-sys_boot,-sys_rawio env -i container=edgefl \
        PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=multi-user.target
' _ "$1" "$2" "$3"
