#!/usr/bin/env bash
# OpenSSH 9.2p1 (Debian 12), `ControlMaster auto` and a ControlPath in ~/.ssh/config, as many have it to log in faster.  A loop starts
# programs on one host at once, by an ssh for each.  Guess: an ssh ends with its program, as the manual says of ControlPersist ("will close
# when the initial client connection is closed"), and a time limit of one ends that one.  Seen: the ssh that opened the connection stays
# until the last of the others has ended, so `timeout` ends it though its program ended long ago; and with it all others end, with 255,
# as if the host had been lost.  With `-S none` each has a connection of its own.
#   first (program 1 s, timeout 4 s), second (program 8 s):   shared: 124 255     -S none: 0 0
# Needs root (sshd, in mount and network namespaces of its own).
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 300 bash "$0" limited
[ "$(id -u)" = 0 ] || { echo "needs root"; exit 2; }
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get -qq download {openssh-server,openssh-client}='1:9.2p1-*' 2>apt.log || { cat apt.log; exit 2; }      # the suffix is Debian's
for package in *.deb; do dpkg -x "$package" .; done
{ grep -v '^\(root\|sshd\):' /etc/passwd; echo "root:x:0:0::$dir:/bin/bash"; echo "sshd:x:199:65534::/run/sshd:/usr/sbin/nologin"; } >passwd
for key in host user; do usr/bin/ssh-keygen -q -t ed25519 -N '' -f $key; done
printf '%s\n' 'Port 22022' 'ListenAddress 127.0.0.1' "HostKey $dir/host" "AuthorizedKeysFile $dir/user.pub" 'StrictModes no' \
    'UsePAM no' 'PermitRootLogin yes' "PidFile $dir/pid" >config
printf '%s\n' 'Host worker' 'HostName 127.0.0.1' 'Port 22022' "IdentityFile $dir/user" 'StrictHostKeyChecking no' 'LogLevel ERROR' \
    'UserKnownHostsFile /dev/null' 'ControlMaster auto' "ControlPath $dir/shared" >user.config
cat >inside.sh <<'SH'
ip link set lo up
mount -t tmpfs none /run && mkdir -m 755 /run/sshd
mount --bind passwd /etc/passwd
"$PWD/usr/sbin/sshd" -f config
run() { local code=0; timeout "$1" usr/bin/ssh -F user.config "${@:4}" worker "touch $2; sleep $3" >>log 2>&1 </dev/null || code=$?; echo $code >"$2.code"; }
for option in '' '-S none'; do
    rm -f first* second*
    run 4 first 1 $option & one=$!
    for _ in $(seq 50); do [ ! -e first ] || break; sleep 0.1; done     # it has opened the connection
    run 30 second 8 $option & two=$!
    wait $one $two
    echo "$(cat first.code) $(cat second.code)"
done
SH
seen=$(unshare --mount --net --pid --fork --kill-child --propagation private bash inside.sh | paste -sd';')
echo "first and second, with a shared connection, and with -S none: $seen"
[ "$seen" = "124 255;0 0" ]
