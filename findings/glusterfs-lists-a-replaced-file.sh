#!/usr/bin/env bash
# GlusterFS 10.3 (Debian 12), one volume of one brick with default settings, mounted twice.  A program saves a small file as many do (write
# `new`, then rename it over `file`), while others list the directory through the other mount.  Guess: a rename is atomic; who opens
# `file` gets the old contents or the new ones, and where caches are behind, that ends in a second.  Seen: after some dozens of
# renames the brick, which was listing at that moment, goes on to list the replaced file under the name.  From then on, on all clients,
# who lists the directory and then reads the file is told "No such file or directory": `ls` and then `cat`, `cat f*`, `grep -r`, `cp -r`,
# rsync, tar.  Who reads it by name, more than a second after any listing there, gets the new contents.  It did not end by itself in a
# minute and a half, though the loops of listings had ended.  The next rename over the file ends it.
#   twice, for half a minute:   cat: 10 of 10, ls and cat: 0 of 10, No such file or directory
#   then:                       after another rename, ls and cat: 6 of 6
# It takes luck: 17 to 170 renames were enough.  If two minutes of renames are not, this exits with 3.
# Needs root (GlusterFS runs in namespaces of its own: all of its processes and mounts end with the first one) and FUSE.
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 480 bash "$0" limited
[ "$(id -u)" = 0 ] && [ -c /dev/fuse ] || { echo "needs root, and /dev/fuse"; exit 2; }
dir=$(mktemp -d)
# shellcheck disable=SC2046
trap 'kill -KILL $(jobs -p) 2>/dev/null && wait; rm -rf "$dir"' EXIT
cd "$dir"
# the suffixes are Debian's
apt-get -qq download glusterfs-{server,client,common,cli}='10.3-*' lib{gfapi0,gfrpc0,gfxdr0,glusterd0,glusterfs0}='10.3-*' \
    liburcu8='0.13.2-*' libaio1='0.3.113-*' libxml2='2.9.14+dfsg-*' libicu72='72.1-*' libreadline8='8.2-*' libssl3='3.0.*' \
    libtirpc3='1.3.3+ds-*' lib{gssapi-krb5-2,krb5-3,k5crypto3,krb5support0}='1.20.1-*' libkeyutils1='1.6.3-*' \
    2>apt.log || { tail -n 1 apt.log; exit 2; }
for package in *.deb; do dpkg -x "$package" .; done
cp -r lib sbin usr
rm usr/lib/*/glusterfs/gsyncd       # geo-replication, without which no Python is needed
mkdir brick one other
cat >inside.sh <<'SH'
set -euo pipefail
within() { local end=$((SECONDS + $1)); until "${@:2}"; do [ $SECONDS -lt $end ] || return 1; sleep 0.2; done; }
address=198.18.0.1          # a volume cannot be at 127.0.0.1
{
    ip link set lo up && ip address add $address dev lo &&
    mount -t overlay -o "lowerdir=$PWD/usr:/usr" none /usr &&       # GlusterFS loads its parts from there
    for hidden in /run /var/lib /var/log; do mount -t tmpfs none $hidden || exit 2; done &&
    mkdir -p /run/gluster /var/lib/glusterd /var/log/glusterfs &&
    glusterd --volfile="$PWD/etc/glusterfs/glusterd.vol" --log-file="$PWD/glusterd.log" &&
    within 60 gluster pool list &&
    gluster --mode=script volume create v "$address:$PWD/brick" force &&
    gluster --mode=script volume start v &&
    mount -t glusterfs $address:/v "$PWD/one" && mount -t glusterfs $address:/v "$PWD/other" &&
    mkdir one/d && echo 0 >one/d/file && within 60 test -e other/d/file
} >setup.log 2>&1 || exit 2

save() { echo "$1" >one/d/new && inode=$(stat -c %i one/d/new) && mv one/d/new one/d/file; }
is_listed() { ls other/d >/dev/null; [ "$(stat -c %i other/d/file)" = "$inode" ]; }
for _ in 1 2; do until [ -e stop ]; do ls other/d >/dev/null 2>&1; done & done
number=0
end=$((SECONDS + 120))
until [ -e stop ]; do
    [ $SECONDS -lt $end ] || exit 3
    number=$((number + 1))
    save $number
    sleep 0.05
    is_listed || { sleep 2.5; is_listed; } || touch stop
done
wait

reads() { [ "$(cat "$1/d/file" 2>>errors)" = "$number" ]; }
count() {                   # how many of so many readings, on both clients, after this command, give the new contents
    local good=0
    for _ in $(seq "$1"); do
        sleep 2.5           # clients forget what was listed after a second
        for client in one other; do
            "${@:2}" $client/d >/dev/null
            if reads $client; then good=$((good + 1)); fi
        done
    done
    echo "$good of $(($1 * 2))"
}
echo "renames: $number"
for _ in 1 2; do echo "cat: $(count 5 true), ls and cat: $(count 5 ls), $(sort -u errors | sed 's/.*: //' | sort -u)"; sleep 10; done
number=new
save $number
echo "after another rename, ls and cat: $(count 3 ls)"
SH
code=0
unshare --mount --net --pid --fork --kill-child --mount-proc bash inside.sh >seen & wait $! || code=$?
cat seen
[ $code != 3 ] || { echo "two minutes of renames were not enough: try again"; exit 3; }
[ -s seen ] || { tail -n 5 ./*.log; echo "GlusterFS did not run: $code"; exit 2; }
[ "$(sed 1d seen | paste -sd';')" = "$(printf '%s;' {,}"cat: 10 of 10, ls and cat: 0 of 10, No such file or directory")after another rename, ls and cat: 6 of 6" ]
