# fish completion for runwait4, made by docs/install/make.py
complete -c runwait4 -fa '(complete -C "no-such-command "(commandline -ct) | string match -rv "(^|/)\.[^/]*\.lock\$")'
complete -c runwait4 -s p -l progress -d 'a bar: one line redrawn on a terminal, a line per change elsewhere, in which
failed jobs are errors, too; = done, ! failed, e error, > running'
complete -c runwait4 -s e -l use-exit-status -d 'exit 0 only if every job is done, or held and not running (with --status: now)'
complete -c runwait4 -l status -d 'print the number of jobs in each state, running jobs, why new jobs wait, and the
time left'
complete -c runwait4 -l json -d 'as JSON: one object, with --output one for each line'
complete -c runwait4 -l failed -d 'print each line that is failed or in error, with host, exit status and the last
lines of output'
complete -c runwait4 -l show -x -d 'print the same for all runs of these lines; LINE: a number, 1,2,5-9, a complete
command, or a shell pattern for commands'
complete -c runwait4 -l output -d 'print the stdout of the last run of each done line; with --csv or --json, of each
line, and how it ended'
complete -c runwait4 -l csv -d 'with --output: as a table'
complete -c runwait4 -l template -x -d '... with the values from which `runset4.py --template T` made the command:
\'simulate {beta} {n}\''
complete -c runwait4 -l stats -d 'print run times, CPU use and memory per host and command, also with --report'
complete -c runwait4 -l outdir -xa '(__fish_complete_directories)' -d 'the --outdir of runmaker4.py, which has the journal [FILE.out]'
complete -c runwait4 -l timeline -rF -d 'write the runs as trace events, for Perfetto (ui.perfetto.dev) or
chrome://tracing: a process per host, a thread per slot'
complete -c runwait4 -l report -rF -d 'write a page for any browser about FILE and its runs; with --progress, update
it while jobs run'
complete -c runwait4 -l check-locks -xa '(__fish_complete_directories)' -d 'test for a minute that hosts can share job files in this directory; start it
on all at the same time'
complete -c runwait4 -l version -d 'print the version'
complete -c runwait4 -s h -l help -d 'print this help'
