#!/bin/bash
# Process 1 of a pretend host (TH_INIT of testhosts.sh): systemd, with the machine's own units. Nothing starts that a
# test does not ask for, and nothing that would reach through to the machine: its devices, modules, global sysctls.
set -e
rm -rf /etc/fstab /etc/systemd/system/*.wants /etc/systemd/system/*.requires
for unit in systemd-sysctl systemd-udevd systemd-udev-trigger systemd-modules-load systemd-binfmt \
  systemd-tmpfiles-setup-dev systemd-remount-fs; do
    ln -sfn /dev/null "/etc/systemd/system/$unit.service"
done
for unit in getty.target systemd-udevd-control.socket systemd-udevd-kernel.socket; do
    ln -sfn /dev/null "/etc/systemd/system/$unit"
done
ln -sfn /usr/lib/systemd/system/multi-user.target /etc/systemd/system/default.target
checkout=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")
mkdir -p /run/checkout
mount --bind "$checkout" /run/checkout
mount -t tmpfs -o mode=1777 tmpfs /tmp  # the machine's own is not systemd's to clean
[ -d "$checkout" ] || { mkdir -p "$checkout"; mount --bind /run/checkout "$checkout"; }
rm -f /run/shm
export container=pretend-host
exec /lib/systemd/systemd --show-status=0
