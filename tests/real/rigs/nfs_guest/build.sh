#!/bin/bash
# build.sh CACHE: put into CACHE what the machines boot: a kernel, an initial RAM disk and a root image, of Debian's
# packages.  Takes some 3 minutes and, meanwhile, 700 MB.  Needs root, for debootstrap; installs here only tools.
set -euo pipefail
cache=$1 suite=bookworm
packages=python3,nfs-common,nfs-kernel-server,rpcbind,iproute2,kmod,procps,tcpdump,strace,busybox-static,ocfs2-tools,\
dbus,dbus-user-session,libpam-systemd,systemd,systemd-sysv
boot_modules="virtio_pci virtio_blk crc32c_generic ext4"    # to reach the root image
more_modules="virtio_net virtio_console virtio_rng lockd nfs nfsv3 nfsv4 nfsd nfs_layout_nfsv41_files af_packet
ceph ocfs2 ocfs2_stack_o2cb ocfs2_dlmfs"

mkdir -p "$cache"
exec 9>"$cache/build.lock"
flock -w 900 9
[ ! -e "$cache/image.stamp" ] || exit 0     # somebody else has built it meanwhile
work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"

apt-get update -qq -o DPkg::Lock::Timeout=300
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=300 \
    debootstrap cpio e2fsprogs kmod >/dev/null
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $suite" 'Component: main' |
    head -n 1)
apt-get download -qq "$(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image/ {print $2; exit}')"
dpkg -x ./*.deb kernel
release=$(ls kernel/lib/modules)
depmod -b kernel "$release"
debootstrap --variant=minbase --include=$packages $suite root "$mirror" >log 2>&1 || { tail -n 3 log >&2; exit 1; }
rm -rf root/var/cache/apt/archives/*.deb root/var/lib/apt/lists/* root/usr/share/{doc,man,locale}

needed() {      # the files of these modules and of those they need, in the order of loading
    for module in "$@"; do
        modprobe -d kernel -S "$release" --show-depends "$module" 2>/dev/null || true
    done | awk '/^insmod/ && !seen[$2]++ {print $2}'
}
modules=lib/modules/$release
mkdir -p "root/$modules" initial/{bin,m,proc,sys,dev,root}
for file in $(needed $boot_modules $more_modules); do
    to=root/$modules/${file#*/"$modules"/}
    mkdir -p "${to%/*}" && cp "$file" "$to"
done
cp kernel/"$modules"/modules.{order,builtin,builtin.modinfo} "root/$modules/"
depmod -b root "$release"
number=10
for file in $(needed $boot_modules); do
    cp "$file" "initial/m/$number-${file##*/}"
    number=$((number + 1))
done
cp root/bin/busybox initial/bin/
(cd initial && find . | cpio -o -H newc --quiet) >"$cache/initrd.img"
cp "kernel/boot/vmlinuz-$release" "$cache/vmlinuz"
truncate -s $(($(du -sm root | cut -f1) * 5 / 4 + 64))M "$cache/root.img"
mkfs.ext4 -q -F -L rigroot -O ^has_journal -m 0 -d root "$cache/root.img"
echo "$release" >"$cache/image.stamp"
