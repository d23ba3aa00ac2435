# fish completion for runwait4, made by docs/install/make.py
complete -c runwait4 -fa '(complete -C "no-such-command "(commandline -ct) | string match -rv "(^|/)\.[^/]*\.lock\$")'
complete -c runwait4 -s p -l progress -d 'a bar: one line redrawn on a terminal, a line per change elsewhere; = done,
! failed, e error (interrupted, lost, not started), > running'
complete -c runwait4 -s e -l use-exit-status -d 'exit 0 only if every job is done, or held; with --status that is judged
now: new and running jobs are not done'
complete -c runwait4 -l status -d 'print how many jobs are in which state, what runs, what new jobs wait for, and
exit; with --outdir also where, since when, and the time left'
complete -c runwait4 -l json -d 'with --status, --failed, --show or --stats: as JSON'
complete -c runwait4 -l failed -d 'print each line that is failed or in error, and exit; with --outdir also how and
where it ended, and what it printed last'
complete -c runwait4 -l show -x -d 'with --outdir: print the same of all runs of these lines, and exit; LINE: a
number, 1,2,5-9, a whole command, or a shell pattern for such'
complete -c runwait4 -l stats -d 'with --outdir, also beside --report: print run times, CPU use and memory per
host and per command (FILE may be left out)'
complete -c runwait4 -l outdir -xa '(__fish_complete_directories)' -d 'the --outdir of runmaker4.py, for what its journal tells [$RUNMAKER4_OUTDIR, FILE.out]'
complete -c runwait4 -l version -d 'print the version'
complete -c runwait4 -s h -l help -d 'print this help'
complete -c runwait4 -l joblog -rF -d 'a job log of runmaker4.py --joblog, or of GNU parallel'
complete -c runwait4 -l timeline -rF -d 'write its runs, or those of --outdir, as trace events, for Perfetto
(ui.perfetto.dev) or chrome://tracing: a process for each host, a thread for
each slot'
complete -c runwait4 -l report -rF -d 'write a page about the same for any browser; with --progress anew while
the jobs of FILE run'
complete -c runwait4 -l check-locks -xa '(__fish_complete_directories)' -d 'try for a minute whether the hosts where this is started can share job files
in this directory, and exit'
