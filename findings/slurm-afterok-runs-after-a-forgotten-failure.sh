#!/usr/bin/env bash
# Slurm 22.05.8 (Debian 12).  The next step is queued by `sbatch --dependency=afterok:ID`.  Guess: it runs only if job ID has ended well; if
# ID has failed it never runs, and a number that Slurm does not know is refused.  Seen: that holds while slurmctld knows job ID, that
# is MinJobAge after its end (300 s if slurm.conf does not say otherwise, here 10 s).  Then the same command is accepted, and the job
# runs at once, as if ID had ended well; so does one with a mistyped number.  afternotok does the same, so after five minutes both
# branches run.  A script that queues its steps late, by hand or after a long test, works on results that are not there.  (26.05.5
# refuses such a job: "Job dependency problem".)
#   afterok of a failed job, known:      PENDING DependencyNeverSatisfied
#   afterok of it, forgotten: COMPLETED      afternotok of it, forgotten: COMPLETED      afterok of 99999: COMPLETED
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
lib=$dir/usr/lib/$(basename lib/*-linux-gnu*)
export PATH=$dir/usr/bin:$dir/usr/sbin:$PATH LD_LIBRARY_PATH=$lib/slurm-wlm:$lib:$dir/lib/${lib##*/} SLURM_CONF=$dir/slurm.conf
mkdir state
printf '%s\n' ClusterName=finding SlurmctldHost=localhost SlurmUser=root "AuthInfo=socket=$dir/socket" "PluginDir=$lib/slurm-wlm" \
    "StateSaveLocation=$dir/state" "SlurmdSpoolDir=$dir/spool" "SlurmctldPidFile=$dir/pid1" "SlurmdPidFile=$dir/pid2" MinJobAge=10 \
    ProctrackType=proctrack/linuxproc SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1 \
    'NodeName=localhost CPUs=1' 'PartitionName=main Nodes=ALL Default=YES' >slurm.conf
cat >inside.sh <<'SH'
set -euo pipefail
within() { local end=$((SECONDS + $1)); until "${@:2}"; do [ $SECONDS -lt $end ] || return 1; sleep 0.2; done; }
hostname localhost
ip link set lo up
ip address add 127.0.0.2 dev lo         # with 127.0.0.1 alone, getaddrinfo() takes the machine for one without IPv4
mungekey --create --keyfile="$PWD/key"
munged --foreground --force --key-file="$PWD/key" --socket="$PWD/socket" --pid-file="$PWD/pid3" --seed-file="$PWD/seed" 2>munged.log &
within 60 munge -n -S "$PWD/socket" -o /dev/null 2>/dev/null || exit 2
slurmctld-wlm -D 2>slurmctld.log &
slurmd-wlm -D -d "$PWD/usr/sbin/slurmstepd-wlm" 2>slurmd.log &
idle() { [ "$(timeout 10 sinfo -h -o %T 2>/dev/null)" = idle ]; }
within 60 idle || exit 2

sbatch() { command sbatch --parsable --output=/dev/null "$@"; }
state() { squeue -h -t all -j "$1" -o "%T %r" 2>/dev/null | sed 's/ None$//'; }
is() { [[ $(state "$1") = $2 ]]; }
after() { id=$(sbatch --dependency="$1" --wrap=true); within 30 is "$id" "@(COMPLETED|*NeverSatisfied)" || true; state "$id"; }
failed=$(sbatch --wrap='exit 3')
within 60 is "$failed" 'FAILED*'
echo "known: $(after "afterok:$failed")"
within 200 is "$failed" ''
echo "forgotten: $(after "afterok:$failed"), $(after "afternotok:$failed"); unknown: $(after afterok:99999)"
SH
code=0
unshare --net --uts --pid --fork --kill-child --mount-proc bash inside.sh >seen & wait $! || code=$?
cat seen
[ $code = 0 ] || { tail -n 5 ./*.log; echo "Slurm did not run: $code"; exit 2; }
[ "$(paste -sd';' seen)" = "known: PENDING DependencyNeverSatisfied;forgotten: COMPLETED, COMPLETED; unknown: COMPLETED" ]
