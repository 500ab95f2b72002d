#!/bin/bash
# Builds a tiny cloud guest from Debian packages only; needs no root, no mounts, no loop devices.
#
#   build.sh OUTDIR
#
# Gives OUTDIR/guest.qcow2 (BIOS-bootable disk: MBR + SYSLINUX on FAT, then an ext4 root partition that grows),
# OUTDIR/guest.raw.ext4 (the same root file system without a partition table: an "AMI"), OUTDIR/vmlinuz ("AKI") and
# OUTDIR/initrd ("ARI"). The same packages give the same bytes.
#
# Build tools (Debian): binutils cpio dosfstools e2fsprogs kmod lz4 mtools qemu-utils syslinux syslinux-common.
# The payload packages (`build.sh --packages` names them) are fetched by `apt-get download`, or taken from $DEB_DIR.
# The guest's user is `cirros`, password `gocubsgo` (uid 0; `sudo` passes through), the one that test suites expect.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

kernel_package() { apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -1; }
payload=(busybox busybox-static dropbear-bin libtomcrypt1 libtommath1 zlib1g libcrypt1 libgmp10 libc6
  e2fsprogs libext2fs2 libcom-err2 libblkid1 libuuid1
  qemu-guest-agent libudev1 libnuma1 liburing2 libglib2.0-0 libpcre2-8-0)
if [ "${1:-}" = --packages ]; then
  kernel=$(kernel_package); [ -n "$kernel" ] || { echo "apt knows no linux-image-cloud-amd64; run: apt-get update" >&2; exit 1; }
  printf '%s\n' "$kernel" "${payload[@]}"; exit
fi

out=$(mkdir -p "$1" && cd "$1" && pwd)
root_mb=${GUEST_ROOT_MB:-44}
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-1700000000} LC_ALL=C TZ=UTC
export E2FSPROGS_FAKE_TIME=$SOURCE_DATE_EPOCH
umask 022; PATH=$PATH:/usr/sbin:/sbin
# in a user namespace, so that files belong to uid 0 even when the builder is nobody special
if [ "$(id -u)" != 0 ] && [ -z "${GUEST_IN_NS:-}" ]; then GUEST_IN_NS=1 exec unshare -r bash "$0" "$@"; fi
w=$(mktemp -d); trap 'rm -rf "$w"' EXIT
mkdir -p "$w/deb" "$w/x" "$w/r" "$w/i"
chmod 755 "$w"

# --- packages -----------------------------------------------------------------------------------
debs=${DEB_DIR:-}
if [ -z "$debs" ]; then
  debs=$w/deb
  echo "fetching packages" >&2
  (cd "$debs" && apt-get -qq -o APT::Sandbox::User=root download "$(kernel_package)" "${payload[@]}")
fi
for d in "$debs"/*.deb; do case ${d##*/} in busybox-static_*) dpkg-deb -x "$d" "$w/static";; *) dpkg-deb -x "$d" "$w/x";; esac; done
x=$w/x r=$w/r i=$w/i
echo "making the root file system" >&2
kver=$(basename "$(ls -d "$x"/lib/modules/*)")

# --- root file system -----------------------------------------------------------------------------
mkdir -p "$r"/{bin,sbin,usr/bin,usr/sbin,lib/x86_64-linux-gnu,lib64,etc/{dropbear,acpi/PWRF},dev,proc,sys,run,tmp,mnt,root,home/cirros/.ssh,var/lib/guest,var/log}
ln -s /run "$r/var/run"; ln -s /lib "$r/usr/lib"
# the dynamic busybox (it has blkid); the static one fills the gaps (passwd, su). Neither bears `wget -T`: it crashes
bb=$(find "$w/static" -type f -path '*/bin/busybox'); bd=$(find "$x" -type f -path '*/bin/busybox')
cp "$bd" "$r/bin/busybox"; cp "$bb" "$r/bin/busybox.static"
for a in $("$bd" --list); do [ "$a" = busybox ] || ln -sf /bin/busybox "$r/bin/$a"; done
for a in $("$bb" --list); do [ -e "$r/bin/$a" ] || [ -L "$r/bin/$a" ] || ln -s /bin/busybox.static "$r/bin/$a"; done
rm -f "$r/bin/mke2fs" "$r/bin/dpkg" "$r/bin/dpkg-deb"; ln -s /bin/busybox "$r/sbin/init"
take() { # a dynamic binary and every library it wants
  local f; f=$(find "$x" -type f -path "*/$1" | head -1); cp "$f" "$r/usr/sbin/"; strip -s "$r/usr/sbin/${1##*/}" 2>/dev/null || :; libs "$f"; }
libs() {
  local n p; for n in $(objdump -p "$1" | sed -n 's/ *NEEDED *//p'); do
    [ -e "$r/lib/x86_64-linux-gnu/$n" ] && continue
    p=$(find "$x" \( -type f -o -type l \) -name "$n" ! -path '*/glibc-hwcaps/*' | head -1)
    [ -n "$p" ] || { echo "no library $n for $1" >&2; exit 1; }
    cp -L "$p" "$r/lib/x86_64-linux-gnu/$n"; libs "$p"; done; }
libs "$bd"
take sbin/dropbear; take bin/dropbearkey; take bin/dbclient; ln -s /usr/sbin/dbclient "$r/bin/ssh"
take sbin/resize2fs; take sbin/mke2fs; take sbin/qemu-ga
for n in mkfs.ext2 mkfs.ext3 mkfs.ext4; do ln -s mke2fs "$r/usr/sbin/$n"; done
cp -L "$(find "$x" -name 'ld-linux-x86-64.so.2' | head -1)" "$r/lib64/ld-linux-x86-64.so.2"
rm -f "$r/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"; ln -s /lib64/ld-linux-x86-64.so.2 "$r/lib/x86_64-linux-gnu/"

# modules: the closure of what a guest may meet
want="virtio_net virtio_blk virtio_console virtio-rng virtio_balloon virtio_scsi sd_mod sr_mod ata_piix
 isofs vfat nls_cp437 nls_ascii nls_iso8859-1 button evdev 8021q"
depmod -b "$x" "$kver" 2>/dev/null
for m in $want virtio_pci; do
  modprobe -S "$kver" -d "$x" --show-depends "$m" | sed -n 's/^insmod //p'
done | sort -u | while read -r f; do install -D -m644 "$f" "$r/lib/modules/$kver/${f#"$x"/lib/modules/"$kver"/}"; done
cp "$x/lib/modules/$kver"/modules.{order,builtin,builtin.modinfo} "$r/lib/modules/$kver/"; depmod -b "$r" "$kver"
rm -f "$r/lib/modules/$kver"/modules.*.bin "$r/lib/modules/$kver/modules.devname" "$r/lib/modules/$kver/modules.softdep"
cp -a --no-preserve=ownership,mode "$here/rootfs/." "$r/"
chmod 755 "$r"/etc/rc* "$r"/usr/sbin/* "$r"/usr/bin/curl "$r"/etc/udhcpc.sh "$r"/etc/acpi/PWRF/*
chmod 600 "$r/etc/shadow"; chmod 700 "$r/root" "$r/home/cirros" "$r/home/cirros/.ssh"; chmod 1777 "$r/tmp"

# --- initramfs: only what finds the root disk -----------------------------------------------------
mkdir -p "$i"/{bin,m,dev,proc,sys,new}; cp "$bb" "$i/bin/busybox"; cp "$here/initramfs-init" "$i/init"; chmod 755 "$i/init"
n=10; for m in virtio_pci virtio_blk; do
  modprobe -S "$kver" -d "$x" --show-depends $m | sed -n 's/^insmod //p' | while read -r f; do echo "$f"; done
done | awk '!s[$0]++' | while read -r f; do cp "$f" "$i/m/$n-${f##*/}"; n=$((n+1)); done
mkdir "$i/m/late"; n=10; for m in virtio_scsi ata_piix sd_mod; do
  modprobe -S "$kver" -d "$x" --show-depends $m | sed -n 's/^insmod //p'
done | awk '!s[$0]++' | while read -r f; do [ -e "$i/m/"*"-${f##*/}" ] || cp "$f" "$i/m/late/$n-${f##*/}"; n=$((n+1)); done
find "$i" "$r" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
(cd "$i" && find . | sort | cpio --quiet -o -H newc --reproducible -R 0:0) | lz4 -l -9 -q > "$out/initrd"
cp "$x/boot/vmlinuz-$kver" "$out/vmlinuz"; chmod 644 "$out/vmlinuz"

# --- ext4 -----------------------------------------------------------------------------------------
echo "making the file systems" >&2
uuid=5ca1ab1e-0000-4000-8000-c10dc10dc10d
rm -f "$out/guest.raw.ext4"
mke2fs -q -t ext4 -b 4096 -d "$r" -L guest-root -U $uuid -m 1 -I 256 \
  -E "hash_seed=$uuid,root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,nodiscard,resize=4194304" \
  "$out/guest.raw.ext4" "${root_mb}M" > /dev/null
# mke2fs -d copies ctimes, which nobody can set: pin every inode's times, and builds are byte-identical
sb() { dumpe2fs -h "$out/guest.raw.ext4" 2>/dev/null | sed -n "s/^$1: *//p"; }
for n in $(seq 1 $(( $(sb 'Inode count') - $(sb 'Free inodes') + 11 ))); do for t in ctime atime mtime crtime; do
  echo "sif <$n> $t @$SOURCE_DATE_EPOCH"; echo "sif <$n> ${t}_extra 0"; done; done > "$w/times"
debugfs -w -f "$w/times" "$out/guest.raw.ext4" > /dev/null 2>&1

# --- FAT boot partition with SYSLINUX (boots a second sooner under TCG than GRUB does) ---------------
args="console=tty0 console=ttyS0 quiet ${GUEST_CMDLINE:-cryptomgr.notests no_timer_check random.trust_cpu=on mitigations=off nokaslr}"
boot_mb=$(( ($(stat -c %s "$out/vmlinuz") + $(stat -c %s "$out/initrd")) / 1048576 + 3 ))
printf 'DEFAULT l\nPROMPT 0\nTIMEOUT 0\nLABEL l\nKERNEL vmlinuz\nINITRD initrd\nAPPEND root=/dev/vda1 %s\n' "$args" > "$w/syslinux.cfg"
cp "$out/vmlinuz" "$out/initrd" "$w/"; touch -d "@$SOURCE_DATE_EPOCH" "$w/vmlinuz" "$w/initrd" "$w/syslinux.cfg"
fat=$w/fat.img; truncate -s "${boot_mb}M" "$fat"
mkfs.vfat -F 16 -i c10dc10d -n GUESTBOOT --invariant "$fat" > /dev/null
mcopy -m -i "$fat" "$w/syslinux.cfg" "$w/vmlinuz" "$w/initrd" ::
syslinux --install "$fat"

# --- disk: entry 1 = root (last on the disk, so that it can grow), entry 2 = boot, active ---------------
echo "making the disk" >&2
disk=$w/disk.raw; truncate -s "$((1 + boot_mb + root_mb))M" "$disk"
le32() { local h; h=$(printf %08x "$1"); printf '\\x%s' "${h:6:2}" "${h:4:2}" "${h:2:2}" "${h:0:2}"; }
part() { printf "\\x$1\\xfe\\xff\\xff\\x$2\\xfe\\xff\\xff$(le32 "$3")$(le32 "$4")"; }
mbr=/usr/lib/syslinux/mbr/mbr.bin; [ -e $mbr ] || mbr=/usr/lib/SYSLINUX/mbr.bin
dd if=$mbr of="$disk" bs=440 count=1 conv=notrunc status=none
{ printf "$(le32 0xc10dc10d)\\0\\0"; part 00 83 $(((1 + boot_mb) * 2048)) $((root_mb * 2048)); part 80 0e 2048 $((boot_mb * 2048))
  head -c 32 /dev/zero; printf '\x55\xaa'; } | dd of="$disk" bs=1 seek=440 conv=notrunc status=none
dd if="$fat" of="$disk" bs=1M seek=1 conv=notrunc,sparse status=none
dd if="$out/guest.raw.ext4" of="$disk" bs=1M seek=$((1 + boot_mb)) conv=notrunc,sparse status=none
qemu-img convert -q -f raw -O qcow2 ${GUEST_COMPRESS--c} "$disk" "$out/guest.qcow2"
