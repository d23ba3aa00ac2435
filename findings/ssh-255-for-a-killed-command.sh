#!/usr/bin/env bash
# OpenSSH 9.2p1 (Debian 12), bash as the login shell.  Guess: 255 of ssh means that the connection failed, and a remote command that is
# killed gives 128 + 9.  Seen: bash replaces itself by a single command, so sshd sees it die and reports a signal, and ssh ends with 255,
# with no message.  The same command in front of another one gives 137.
#   single command killed: 255      followed by another: 137    a host that does not answer: 255
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
cat >inside.sh <<'SH'
ip link set lo up
mount -t tmpfs none /run && mkdir -m 755 /run/sshd
mount --bind passwd /etc/passwd
"$PWD/usr/sbin/sshd" -f config
status() { local code=0; usr/bin/ssh -F none -p "$1" -i user -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
    -o LogLevel=ERROR 127.0.0.1 "$2" >log 2>&1 || code=$?; echo $code; }
killed='python3 -c "import os; os.kill(os.getpid(), 9)"'
echo "$(status 22022 "$killed") $(status 22022 "$killed; exit \$?") $(status 22023 true)"
SH
seen=$(unshare --mount --net --pid --fork --kill-child --propagation private bash inside.sh)
echo "single command killed, followed by another, no server: $seen"
[ "$seen" = "255 137 255" ]
