#!/usr/bin/env bash
# R 4.2.2 (Debian 12), parallel::mclapply().  A script adds up what its children compute; the kernel's OOM killer takes one of them.  Guess:
# mclapply() raises an error, as Python's concurrent.futures does, so Rscript ends with 1, and the batch system sees a failure.  Seen: a
# warning at the end; all values of that child are NULL, also those that it had computed before, sum(unlist()) leaves them out, and the
# exit status is 0.  A scheduler that repeats what was killed for memory does not see it.  options(warn = 2) makes it an error.
#   sum of 1 to 8, in two children of which one is killed at its third value: 16, exit status 0; with options(warn = 2): exit status 1
set -euo pipefail
[ "${1-}" = limited ] || exec timeout -k 9 300 bash "$0" limited
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get -qq download r-base-core=4.2.2.20221110-2 {libblas3,liblapack3}=3.11.0-2 {libgfortran5,libgomp1,libquadmath0}='12.2.0-*' \
    libicu72='72.1-*' libpcre2-8-0='10.42-*' libreadline8='8.2-*' libtirpc3='1.3.3*' 2>apt.log || { cat apt.log; exit 2; }
for package in *.deb; do dpkg -x "$package" .; done
arch=$(basename usr/lib/*-linux-gnu)
lib=$dir/usr/lib/$arch
export R_HOME=$dir/usr/lib/R R_SHARE_DIR=$dir/usr/share/R/share
export LD_LIBRARY_PATH=$R_HOME/lib:$lib:$dir/lib/$arch:$lib/blas:$lib/lapack
cat >sum.R <<'R'
library(parallel)
parts <- mclapply(1:8, function(n) { if (n == 6) tools::pskill(Sys.getpid(), 9); n }, mc.cores = 2)
cat(sum(unlist(parts)), "")
R
seen() {    # seen LINE: what the script prints, after a line, and its exit status
    local status=0
    { echo "$1"; cat sum.R; } >run.R
    usr/lib/R/bin/exec/R --no-echo --no-restore --vanilla --file=run.R 2>/dev/null || status=$?
    echo "$status"
}
seen="$(seen '') $(seen 'options(warn = 2)')"
echo "sum and exit status, then with warn = 2: $seen"
[ "$seen" = "16 0 1" ]
