#!/usr/bin/env bash
# socket of CPython 3.9 to 3.15 (seen: 3.9.18, 3.10.13, 3.11.2, 3.11.7, 3.12.1, 3.13.0, 3.14.10, 3.15.2).  A pool of workers hands open
# files over a Unix socket, and starts jobs.  Guess: recv_fds(sock, size, n, flags) passes its flags to recvmsg(2), as the manual's
# signature says, so with MSG_CMSG_CLOEXEC no job inherits what came, and MSG_PEEK leaves the message.  Seen: the flags are dropped. A
# message that was only peeked at is gone, and each child that is started by os.system(), fork or close_fds=False inherits the
# descriptors, so a pipe whose end came this way gets no end-of-file before all of these end.  Calling sock.recvmsg() with the same flags
# does what the flags say.
#   recv_fds: inheritable True, peeked message gone     recvmsg: inheritable False, message still there
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 300 bash "$0" limited
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get -qq download {python3.11-minimal,libpython3.11-minimal,libpython3.11-stdlib}='3.11.2-*' 2>apt.log || { cat apt.log; exit 2; }
for package in ./*.deb; do dpkg -x "$package" root; done
cat >pass.py <<'PY'
import array, os, socket, sys
sender, receiver = socket.socketpair()
receiver.setblocking(False)
fd = os.pipe()[0]

def by_recv_fds(flags):
    return socket.recv_fds(receiver, 9, 1, flags)[1]

def by_recvmsg(flags):
    parts = receiver.recvmsg(9, socket.CMSG_SPACE(4), flags)[1]
    return list(array.array("i", parts[0][2]))

seen = []
for receive in by_recv_fds, by_recvmsg:
    socket.send_fds(sender, [b"1"], [fd])
    came, = receive(socket.MSG_CMSG_CLOEXEC)
    socket.send_fds(sender, [b"2"], [fd])
    receive(socket.MSG_PEEK)
    try:
        left = receiver.recv(9)
    except BlockingIOError:
        left = None
    seen.append((os.get_inheritable(came), left))
print(sys.version.split()[0], seen)
sys.exit(seen != [(True, None), (False, b"2")])
PY
PYTHONHOME=$dir/root/usr root/usr/bin/python3.11 pass.py
