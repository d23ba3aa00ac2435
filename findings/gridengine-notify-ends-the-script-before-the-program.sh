#!/usr/bin/env bash
# Grid Engine 8.1.9 (Debian 12).  Guess: `qsub -notify` warns a job: USR2 comes `notify` seconds (here 20) before the KILL of qdel, so a
# program that handles USR2, started by the job script, has that time to save its state.  Seen: each process of the job gets USR2, also
# the shell that runs the script.  It dies of it, the job has ended with that, and Grid Engine kills what is left at once.  The
# program gets its signal, and no time.  With `trap : USR2` in the script (a trap, unlike '', is not inherited), or with `exec`, it has
# the time.
#   state saved, 2 s after the signal:  script without a trap: no,  with a trap: yes,  with exec: yes
# Needs root (Grid Engine runs in a root of Debian in namespaces of its own: all of its processes end with the first one).
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 900 bash "$0" limited
[ "$(id -u)" = 0 ] || { echo "needs root"; exit 2; }
dir=$(mktemp -d); trap 'rm -rf --one-file-system "$dir"' EXIT
chmod 755 "$dir"
unset TMPDIR                # it names no folder within the root
cd "$dir"
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | sed -n 1p) || exit 2
debootstrap --variant=minbase --include=python3,procps bookworm root "$mirror" >log 2>&1 || { tail -n 3 log; exit 2; }
cp /etc/resolv.conf root/etc/
cp -r /etc/apt/apt.conf.d/. root/etc/apt/apt.conf.d/
printf '#!/bin/sh\nexit 101\n' >root/usr/sbin/policy-rc.d
chmod +x root/usr/sbin/policy-rc.d
echo '198.18.0.1 gmaster' >>root/etc/hosts
cat >root/save.py <<'PY'
import signal, sys, time
def save(*_):
    time.sleep(2)
    open(sys.argv[1] + ".saved", "w")
    sys.exit()
signal.signal(signal.SIGUSR2, save)
open(sys.argv[1] + ".runs", "w")
time.sleep(100)
PY
cat >inside.sh <<'SH'
set -euo pipefail
within() { local end=$((SECONDS + $1)); until "${@:2}" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || return 1; sleep 0.2; done; }
as() { chroot root setpriv --reuid="$1" --regid="$1" --init-groups env -i -C /home/ann EDITOR=true PATH=/usr/bin:/bin "${@:2}"; }
hostname gmaster
ip link set lo up
mount -t proc proc root/proc
mount --rbind /dev root/dev
ip link add eth0 type bridge && ip address add 198.18.0.1/24 dev eth0 && ip link set eth0 up
SGE_ND=1 chroot root sge_qmaster >master.log 2>&1 &
within 30 as sgeadmin qconf -sh
{
    as sgeadmin qconf -as gmaster
    for name in make smp mpi; do as sgeadmin qconf -Ap /usr/share/gridengine/util/resources/pe/$name; done
    printf '%s\n' 'hostname gmaster' 'load_scaling NONE' 'complex_values NONE' 'user_lists NONE' 'xuser_lists NONE' 'projects NONE' \
        'xprojects NONE' 'usage_scaling NONE' 'report_variables NONE' >root/host
    as sgeadmin qconf -Ae /host
    as sgeadmin qconf -aq all.q
    as sgeadmin qconf -sq all.q | sed 's/^hostlist .*/hostlist gmaster/; s/^slots .*/slots 3/; s/^load_thresholds .*/load_thresholds NONE/
        s/^notify .*/notify 0:0:20/' >root/queue
    as sgeadmin qconf -Mq /queue
} >config.log 2>&1
SGE_ND=1 chroot root sge_execd >execd.log 2>&1 &
sleep 1
printf '#!/bin/sh\npython3 /save.py plain\ntrue\n' >root/home/ann/plain.sh
printf '#!/bin/sh\ntrap : USR2\npython3 /save.py trap\ntrue\n' >root/home/ann/trap.sh
printf '#!/bin/sh\nexec python3 /save.py exec\n' >root/home/ann/exec.sh
for name in plain trap exec; do as ann qsub -notify -S /bin/sh -cwd $name.sh >/dev/null; done
for name in plain trap exec; do within 60 test -e root/home/ann/$name.runs; done
as ann qdel 1 2 3 >/dev/null
for name in trap exec; do within 60 test -e root/home/ann/$name.saved || true; done
sleep 3
for name in plain trap exec; do
    printf '%s %s;' $name "$([ -e root/home/ann/$name.saved ] && echo yes || echo no)"
done
SH
unshare --uts --mount --pid --fork --kill-child --propagation private bash -euc 'hostname gmaster; mount -t proc proc root/proc
    for package in client common master exec; do
        for value in "cell string default" "master string gmaster" "config boolean true"; do echo "gridengine-$package shared/gridengine$value"; done
    done | chroot root debconf-set-selections
    chroot root apt-get -qq update
    DEBIAN_FRONTEND=noninteractive chroot root apt-get -qq -y --no-install-recommends install \
        gridengine-master=8.1.9+dfsg-10+b1 gridengine-exec=8.1.9+dfsg-10+b1 gridengine-client=8.1.9+dfsg-10+b1
    chroot root useradd -m -u 3001 ann' >log 2>&1 || { tail -n 3 log; exit 2; }
seen=$(unshare --net --uts --ipc --mount --pid --fork --kill-child --mount-proc --propagation private bash inside.sh) ||
    { tail -n 5 ./*.log; echo "Grid Engine did not run"; exit 2; }
echo "$seen"
[ "$seen" = "plain no;trap yes;exec yes;" ]
