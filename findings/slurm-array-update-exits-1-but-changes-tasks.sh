#!/usr/bin/env bash
# Slurm 22.05.8 (Debian 12).  Guess: `scontrol update JobId=ARRAY ...` is all or nothing, or at least an exit status of 1 means that nothing
# was changed.  Seen: as soon as one task of the array has finished, the pending tasks are updated all the same, stderr says what became
# of each task ("No error" is one of the messages), and the exit status is 1.  hold and release do the same, and it does not matter
# which task has finished.  So `set -e` ends a script after the change was made, and a loop that repeats the command until it ends with
# 0 repeats the change until Slurm has forgotten the finished task (MinJobAge: 300 s); then the same command ends with 0.
#   hold 1: 1 "1_0: Job has already finished,1_1: No error", then 1_1: PENDING JobHeldAdmin
#   release 1: 1 "1_0: Job has already finished,1_1: No error", then 1_1: PENDING
#   update JobId=1 StartTime=now+2: 1 "1_0: Job has already finished,1_1: No error", then 1_1: COMPLETED
#   and the same for array 3, where 3_1 has finished: "3_0: No error,3_1: Job has already finished"
# Needs root (Slurm runs in namespaces of its own: all of its processes end with the first one).
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 600 bash "$0" limited
[ "$(id -u)" = 0 ] || { echo "needs root"; exit 2; }
dir=$(mktemp -d)
# shellcheck disable=SC2046
trap 'kill -KILL $(jobs -p) 2>/dev/null && wait; rm -rf "$dir"' EXIT
cd "$dir"
# the suffixes are Debian's
apt-get -qq download {slurmctld,slurmd,slurm-client,slurm-wlm-basic-plugins}='22.05.8-*' {munge,libmunge2}='0.5.15-*' \
    libhwloc15='2.9.0-*' libnuma1='2.0.16-*' libreadline8='8.2-*' libjson-c5='0.16-*' libyaml-0-2='0.2.5-*' 2>apt.log || { cat apt.log; exit 2; }
for package in *.deb; do dpkg -x "$package" .; done
arch=$(basename lib/*-linux-gnu*)
plugins=$dir/usr/lib/$arch/slurm-wlm
export PATH=$dir/usr/bin:$dir/usr/sbin:$PATH LD_LIBRARY_PATH=$plugins:$dir/usr/lib/$arch:$dir/lib/$arch SLURM_CONF=$dir/slurm.conf
mkdir state
cat >slurm.conf <<CONF
ClusterName=finding
SlurmctldHost=localhost
SlurmUser=root
AuthInfo=socket=$dir/munge.socket
PluginDir=$plugins
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
ProctrackType=proctrack/linuxproc
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
NodeName=localhost CPUs=1
PartitionName=main Nodes=ALL Default=YES
CONF

cat >inside.sh <<'SH'
set -euo pipefail
within() { local end=$((SECONDS + $1)); until "${@:2}"; do [ $SECONDS -lt $end ] || return 1; sleep 0.2; done; }
hostname localhost
ip link set lo up
ip address add 127.0.0.2 dev lo         # with 127.0.0.1 alone, getaddrinfo() takes the machine for one without IPv4
mungekey --create --keyfile="$PWD/key"
munged --foreground --force --key-file="$PWD/key" --socket="$PWD/munge.socket" --pid-file="$PWD/munge.pid" --seed-file="$PWD/seed" \
    2>munged.log &
within 60 munge -n -S "$PWD/munge.socket" -o /dev/null 2>/dev/null || exit 2
slurmctld-wlm -D 2>slurmctld.log &
slurmd-wlm -D -d "$PWD/usr/sbin/slurmstepd-wlm" 2>slurmd.log &
idle() { [ "$(timeout 10 sinfo -h -o %T 2>/dev/null)" = idle ]; }
within 60 idle || exit 2

state() { squeue -h -r -t all -j "$1" -o "%T %r" | sed -E 's/ (None|BeginTime)$//'; }
is() { [ "$(state "$1")" = "$2" ]; }
for finished in 0 1; do
    id=$(sbatch --parsable --output=/dev/null --array=0-1 --begin=now+1hour --wrap=true)
    task=${id}_$((1 - finished))
    scontrol update "JobId=${id}_$finished" StartTime=now
    within 60 is "${id}_$finished" COMPLETED
    for command in "hold $id" "release $id" "update JobId=$id StartTime=now+2"; do
        code=0
        # shellcheck disable=SC2086
        scontrol $command 2>messages || code=$?
        case $command in update*) within 60 is "$task" COMPLETED || true; esac       # without the update it waits an hour
        echo "$command: $code \"$(paste -sd, messages)\", then $task: $(state "$task")"
    done
done
SH
code=0
unshare --net --uts --pid --fork --kill-child --mount-proc bash inside.sh >seen & wait $! || code=$?
cat seen
[ $code = 0 ] || { tail -n 5 ./*.log; echo "Slurm did not run: $code"; exit 2; }

lines() {
    echo "hold $1: 1 \"$2\", then $3: PENDING JobHeldAdmin"
    echo "release $1: 1 \"$2\", then $3: PENDING"
    echo "update JobId=$1 StartTime=now+2: 1 \"$2\", then $3: COMPLETED"
}
lines 1 "1_0: Job has already finished,1_1: No error" 1_1 >expected
lines 3 "3_0: No error,3_1: Job has already finished" 3_0 >>expected
diff expected seen
