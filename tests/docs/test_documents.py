"""What README.md, docs/ and the READMEs in tests/ tell people to type works, and their links lead somewhere.

Every block of shell commands, and every command of ours in the text, is read out of the documents and run in
a directory of its own, with the real scripts; where a document shows the output, that is compared.  What
needs another host or program (Slurm, ssh, containers, the user's own programs) meets a stub on PATH: see
STUBS.  A block or a command that is not known here is a failure, and so is text in backquotes, of several
words, that nobody has classified.
"""
import ast
import os
import pathlib
import re
import signal
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Optional

from docs.install import make, numbers
from runmaker4 import OUR_OPTIONS, PORT, VERSION, WIRE_VERSION
from tests.support import wire
from tests.support.case import Case
from tests.support.documents import MESSAGES, STUBS, Piece, read_pieces
from tests.support.ports import free_port
from tests.support.processes import DEADLINE
from tests.support.scripts import FULL, PYTHON, ROOT, RUNCLIENT, RUNMAKER, RUNSERVER, SCRIPTS, SCRIPTS_AT

DOCUMENTS = (
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md",
    *(f"docs/{name}.md" for name in (
        "architecture", "coming-from", "clusters", "first-day", "file-systems", "how-it-works",
        "messages", "mistakes", "numbers", "over-tcp", "recipes", "records", "reference", "services",
        "who-can-do-what")),
    "tests/README.md", "tests/bench/README.md", "findings/README.md",
)
# always run, but for what they do with a checkout; the others in full size
OFTEN = "README.md", "docs/first-day.md"
OURS = re.compile(r"\b(?:runmaker4(?:-server|-client)?|runset4|runwait4)\.py\b")
MOST_LINES = {"README.md": 250, "CONTRIBUTING.md": 200, "tests/README.md": 100}         # of others 450
MOST_README_WORDS = 1350
AT_ONCE = 6                             # commands that are run at the same time


# -- reading the documents -----------------------------------------------------------------------------------

def first_line(text: str) -> str:
    """The first line of a piece that says what it is: of a batch script the second one."""
    return text.split("\n", 2)[1 if text.startswith("#!") else 0]


def read_block(document: str, first: str) -> str:
    """The block with this first line."""
    return next(piece.text for piece in read_pieces(document) if first_line(piece.text) == first)


def help_of(script: str) -> str:
    return make.read_script(script[:-3]).parser.format_help()


def prose(document: str) -> str:
    return re.sub(r"^```.*?^```$", "", (ROOT / document).read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(document: str) -> list[str]:
    """The names that the headings of a document have on GitHub."""
    headings = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


# -- what the commands meet ----------------------------------------------------------------------------------

JOBLOG = ("Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n"
          "7\talice\t1700000000.000\t1.000\t0\t0\t0\t0\tsimulate --seed 7\n")
FILES = {
    "list": "1\n2\n",
    "commands": "simulate --seed 1\nsimulate --seed 2\n",
    "names": "a\nb\n",
    "workers": "alice\nbob\n",
    "mywork.tasks": "simulate --seed 1\n",
    "jobs.log": JOBLOG,
    "work.log": JOBLOG,
    "a b.dat": "",
    "job.sh": "",
    "job_script.sh": "#!/bin/sh\n",
    "jobqueue/1.conf": "[control]\nexecutable: true\n",
    "testconfig.txt": 'test0:\nalice: "true"\nend\n',
    "tests.txt": "#RUN together=test0 host=alice\n! true\n",
    "log": "+ status (alice,601): exit 3 \"simulate\"\n",
    "serve-load": "#!/bin/sh\n",
    "measure": "#!/bin/sh\n",
    "clean-up": "#!/bin/sh\n",
    # As conda does: conda.sh defines a function, which has a program print what is to be evaluated
    "miniconda3/etc/profile.d/conda.sh": 'conda() { eval "$("$HOME/miniconda3/bin/conda" "$@")"; }\n',
    "miniconda3/bin/conda": """\
#!/bin/sh
# conda activate NAME
echo "PATH='$HOME/miniconda3/envs/$2/bin:$PATH'; export CONDA_DEFAULT_ENV='$2'"
""",
    "miniconda3/envs/sim/bin/simulate": "#!/bin/sh\necho \"$CONDA_DEFAULT_ENV $*\"\n",
    # What Environment Modules and Lmod do
    "modules/init/bash": 'module() { eval "$("$MODULESHOME/modulecmd" bash "$@")"; }\n',
    "modules/modulecmd": """\
#!/bin/sh
# modulecmd bash load NAME
echo "PATH=\\$MODULESHOME/bin:\\$PATH; export LOADEDMODULES=$3"
""",
    "modules/bin/simulate": "#!/bin/sh\necho \"$LOADEDMODULES $*\"\n",
}


def jobs(states: str) -> str:
    """A job file of simulations in these states."""
    return "".join(f"{state} simulate --seed {number}\n" for number, state in enumerate(states, 1))


@dataclass
class Recipe:
    """How to run a command, and what must come of it."""
    jobs: str = ""                      # runs.txt; if empty, there is none
    before: str = ""                    # shell commands before it, in the same shell
    after: str = ""                     # commands behind it: they must succeed
    # its exit status; 0: that of each command in it; None: some of them may fail
    status: Optional[int] = 0
    # it does not end by itself, but has done its work when this command succeeds
    until: str = ""
    states: str = ""                    # of the jobs in runs.txt at the end
    files: dict[str, str] = field(default_factory=dict)         # besides FILES
    # what is replaced in it: it may take too long here
    instead: dict[str, str] = field(default_factory=dict)
    typed: bool = False                 # at a terminal, though one without a bar


SAMPLES_LOOP = 'while read -r s || [ "$s" ]; do'
BY_SCRIPT = {                           # for commands that are not in RECIPES
    "runmaker4.py": Recipe(jobs(".."), states="dd"),
    "runset4.py": Recipe(jobs("d!e" + "." * 24 + "x") + ". ./job_script.sh data_1\n#RUN end\n"),
    "runwait4.py": Recipe(jobs("d!edx")),
}
SERVER = "runmaker4-server.py runs.txt > said 2>&1 &\n" \
         "until grep -q 'serving on' said; do kill -0 $! || { cat said; exit 1; }; sleep 0.05; done"
CLIENT = f"{SERVER}\ntouch hold; runmaker4-client.py --follow -j2 --name bob localhost > bob 2>&1 &\n" \
         "until [ $(grep -c forked bob) = 2 ]; do sleep 0.05; done"
WORKER = "touch hold; runmaker4.py -d --follow -j2 --pidfile pid --errors errors runs.txt\n" \
         "until [ $(grep -c ^r runs.txt) = 2 ]; do sleep 0.05; done"
HOST_WORKER = WORKER.replace("pid ", "pid.$(hostname) ")
# the worker in the background has left
GONE = "while kill -0 $(cat pid*) 2> gone; do sleep 0.05; done"
# sh -c on a terminal, whose screen goes to stdout
TYPED = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(['sh', '-c', sys.argv[1]])))"
CHECKOUT = f"export RUNMAKER4_TEST_FULL=1; cd {ROOT}"
UNITTEST = "python3 -m unittest discover -s tests -t ."
# One test instead of all, and nothing compiled for it
ONE_TEST = {UNITTEST: f"{UNITTEST} -p test_packaging.py -k what_it_needs"}
JOURNAL = Recipe(jobs("...."), before="runmaker4.py -q runs.txt || true", states="dddd")
LINE_17 = replace(JOURNAL, jobs=jobs("d" * 16 + "."), states="d" * 17)
WAITS = Recipe(jobs(".."), after=f"runwait4.py -e runs.txt; runset4.py runs.txt --add '#RUN end'; {GONE}",
               states="dd")
# In a batch job of Slurm's, with its variables
BATCH = Recipe(jobs("e."), states="dd",
               before="export SLURM_JOB_ID=$$ SLURM_JOB_END_TIME=$(($(date +%s) + 999)) "
                      "SLURM_CPUS_PER_TASK=2 SLURM_NTASKS=2 CUDA_VISIBLE_DEVICES=0,1")

# Commands, and first lines of blocks (see first_line); what stands in both documents and BY_SCRIPT need not
# be here
# the programs of the recipe for several steps; `total` says of how many samples it knows the count
STEPS = {"samples": "S1\nS2\n", "more": "S3\nS4\n", "trim": "#!/bin/sh\ntouch $1.trim\n",
         "align": "#!/bin/sh\nmv $1.trim $1.bam\n",
         "count": "#!/bin/sh\nsleep 0.2; mv $1.bam $1.count\n", "total": "#!/bin/sh\nls *.count | wc -l\n"}
SCOPES = "systemd-run --user --scope -q -p OOMPolicy=continue -p MemoryMax=$RUNMAKER4_MEMORY"
RECIPES = {
    # the README
    # each job waits for the line that is added while they run, and each command for what it speaks of
    "seq 60 | runset4.py runs.txt --add-list - --template './fit --seed {}'": Recipe(
        files={"fit": "#!/bin/sh\nuntil grep -q 'seed 99' runs.txt; do sleep 0.05; done\n"
                      "case $2 in 7|23|41) echo 'step 812: no convergence' >&2; exit 1;; esac\n"},
        instead={"runmaker4.py -d": "runmaker4.py --name alice --pidfile pid -d",
                 "runset4.py runs.txt --add './fit": "until grep -q ^r runs.txt; do sleep 0.05; done\n"
                                                     "runset4.py runs.txt --add './fit",
                 "runwait4.py --failed": f"{GONE} 2> gone\nrunwait4.py --failed",
                 "runmaker4.py -r": "echo 'echo $2' > fit; runmaker4.py -r"},
        after="[ $(grep -c ,done, table.csv) = 61 ]", states="d" * 61, typed=True),
    "cat > runs.txt << 'END'": Recipe(states="d!", typed=True, status=None),
    # the runner is killed while its two jobs wait for that
    "echo 3,14 > numbers.csv": Recipe(
        "d sleep 1; echo one\n! sleep 1; cat numbers.csv\n",
        before="sed -i s/^d/./ runs.txt; runmaker4.py -q runs.txt",
        instead={"sleep 3": "until [ -e killed ]; do sleep 0.05; done",
                 "sleep 1; kill -9": "until [ $(grep -c ^r runs.txt) = 2 ]; do sleep 0.05; done; kill -9",
                 # a runner that comes before the end of those jobs leaves them alone
                 "sleep 4": "touch killed\nuntil [ $(runwait4.py --status runs.txt | "
                            "grep -c '(orphan)') = 2 ]; do sleep 0.05; done"},
        states="dddd", typed=True),
    "runmaker4.py -d -j0 --pidfile pid.$(hostname) --errors errors.$(hostname) runs.txt":
        Recipe(jobs(".."), after="runwait4.py -e runs.txt; test -s runs.txt.out/journal", states="dd"),
    "runmaker4-server.py -d --pidfile pid --errors errors runs.txt >/dev/null":
        Recipe(jobs("."), after="until grep 'serving on' errors; do sleep 0.05; done; kill $(cat pid)"),
    r"printf 'a,b\n3,14\n15,92\n' > params.csv": Recipe(after="[ $(grep -c ^d sums.txt) = 2 ]"),
    "runwait4.py --output runs.txt": JOURNAL,
    "runwait4.py --output --csv runs.txt": JOURNAL,
    "runwait4.py --output --csv runs.txt > table.csv": replace(JOURNAL, after="grep -c done table.csv"),
    "runmaker4.py --dry-run runs.txt": Recipe(jobs(".."), states=".."),
    f"runmaker4.py --runner '{SCOPES}' runs.txt": Recipe("#RUN memory=1M\n" + jobs(".."), states="dd"),
    "ls *.dat | runset4.py runs.txt --add-list - --new --template 'prog {}'": Recipe(
        "d prog 'a b.dat'\n", before="touch c.dat", states="d."),
    "ls *.dat | runset4.py runs.txt --add-list - --template 'prog --in {} > {.}.out'":
        Recipe(after="runmaker4.py runs.txt; test -e 'a b.out'", states="d"),
    "runset4.py runs.txt --add-list params.csv --template 'simulate {beta} {n}'":
        Recipe(before=r"printf 'beta,n\n0.1,16\n0.2,32\n' > params.csv", after="runmaker4.py runs.txt",
               states="dd"),
    "runset4.py runs.txt --add-list params.csv --new --template 'sim {n}'":
        Recipe("d sim 1\n", before=r"printf 'n\n1\n2\n' > params.csv", states="d."),
    "runset4.py runs.txt --add-list list --template 'PARALLEL_SEQ={#} simulate {}'":
        Recipe(before="seq 2 > list", states=".."),
    "runset4.py - --add-list list --template 'simulate {}'": Recipe(before="seq 2 > list"),
    r"make -n --no-print-directory all | sed -e :a -e '/\\$/N; s/\\\n//; ta'"
    " | runset4.py runs.txt --add-list -":
        Recipe(before=r"printf 'all:\n\ttest a \\\n\t\t!= \\\n\t\tb\n\ttrue\n' > Makefile",
               after="runmaker4.py runs.txt", states="dd"),
    "echo '. simulate --seed 9' >> runs.txt": Recipe(jobs("."), after="runmaker4.py runs.txt", states="dd"),
    "runwait4.py --output runs.txt 17": LINE_17,
    "runwait4.py --output runs.txt 5-9":
        Recipe(jobs("." * 9), before="runmaker4.py -q -j9 runs.txt", states="d" * 9),
    "runwait4.py --output --csv --template 'simulate {beta} {n}' runs.txt > table.csv":
        Recipe(". simulate 0.1 3\n. simulate 0.1 5\n. simulate 0.2 7\n", states="ddd",
               before="runmaker4.py -q runs.txt; "
                      "echo 'from unittest import mock' > pandas.py; "
                      "echo 'read_csv = to_numeric = mock.MagicMock()' >> pandas.py",
               after="[ $(wc -l < table.csv) = 4 ]"),
    "runmaker4.py -d --follow -j4 --pidfile pid.$(hostname) runs.txt": WAITS,
    "runwait4.py --output --json runs.txt | jq -c . > out.json": Recipe(
        jobs(".."), before="runmaker4.py -q runs.txt", states="dd",
        after="[ $(wc -l < out.json) = 2 ] && [ $(wc -l < journal.json) -ge 2 ] && "
              "[ $(wc -l < table.csv) = 3 ]"),
    "runwait4.py --output --json --template 'simulate {beta} {n}' runs.txt | "
    "python3 -c 'import json, re, sys": Recipe(
        ". simulate 0.1 3\n. simulate 0.2 5\n", states="dd",
        files={"simulate": "#!/bin/sh\nseq $2 | sed 's/^/energy: /'\n"},
        before="PATH=$PWD:$PATH runmaker4.py -q runs.txt",
        after="[ $(grep -c -x -e '0.1 3 3' -e '0.2 5 5' .printed) = 2 ]"),
    "runwait4.py -e runs.txt && echo done": Recipe(jobs("dd")),
    "runmaker4.py -r -j0 runs.txt": Recipe(jobs("!e.dx"), states="ddddx"),
    "runmaker4.py --resume -j0 runs.txt": Recipe(jobs("er.dx"), states="ddddx"),
    "runset4.py runs.txt --add --template 'simulate --a {1} --b {2}' ::: 1 2 3 ::: 0.1 0.2":
        Recipe(states="......"),
    "runset4.py --set=. --state='d!e' runs.txt": Recipe(jobs("d!ex."), states="...x."),
    "runset4.py --cancel runs.txt 17": Recipe(jobs("d" * 16 + "."), states="d" * 16 + "c"),
    "runset4.py --edit runs.txt":
        Recipe(jobs(".."), before="export EDITOR='sed -i s/seed/grain/'", after="grep -q 'grain 1' runs.txt",
               states=".."),
    "runset4.py --pause runs.txt":
        Recipe(jobs("d..x"), instead={"runset4.py --go": "grep -nx '#RUN pause' runs.txt; runset4.py --go"},
               states="d..x"),
    "runset4.py --go runs.txt": Recipe(jobs("."), before="runset4.py -q --pause runs.txt", states="."),
    "runset4.py runs.txt --add \"#RUN from=$(date -d 'tomorrow 8:00' +%FT%T)\" 'simulate 3'":
        Recipe(after="runwait4.py --status runs.txt | grep ' waits for .*(in '", states="."),
    "pid=$(runwait4.py --status --json runs.txt | python3 -c 'import json, sys": Recipe(
        jobs("d" * 16 + "."), before="touch hold; runmaker4.py -d --pidfile pid --errors errors runs.txt\n"
                                     "until grep -q ^r runs.txt; do sleep 0.05; done",
        instead={"$pid\nkill": "$pid; until grep -q ^State:.T /proc/$pid/status; do sleep 0.05; done; kill"},
        after=f"rm hold; {GONE}", states="d" * 17),
    "timeout -s USR1 $(($(date -d 18:00 +%s) - $(date +%s))) runmaker4.py -j0 runs.txt": Recipe(
        jobs(".."), instead={"18:00": "'now + 1 hour'"}, states="dd"),
    "runset4.py runs.txt --add --template './sim --beta {1} --gamma {2}' ::: 0.1 0.2 ::: 1 2": Recipe(
        "d ./sim --beta 0.1\n", files={"sim": "#!/bin/sh\necho $#\n"},
        instead={"old.json": "old.json || true", "new.json": "new.json || true"}, states="ddddd",
        before="runset4.py --set=. runs.txt 1; runmaker4.py -q runs.txt",
        after="[ $(grep -c '\"gamma\": \"2\"' new.json) = 2 ] && grep '\"beta\": \"0.1\".*2' old.json"),
    "mkdir -p web": replace(JOURNAL, until="test -s web/index.html && grep 'Serving HTTP' .printed",
                            instead={"8000": "0", "python3 -m": "python3 -u -m"}),
    "# told: runs the job that follows, and sends mail if it fails": Recipe(),
    "runmaker4.py --runner ./told -j0 runs.txt": Recipe(
        jobs(".."), files={"told": '#!/bin/sh\n"$@"\n'}, states="dd"),
    "ssh -t bob 'cd project && runmaker4.py -j0 runs.txt'": Recipe(
        jobs(".."), instead={"cd project && ": ""}, states="dd"),
    "runset4.py - --add --template ...": Recipe(instead={"...": "'echo {}' ::: 1"}),
    "runset4.py --set=new --state=held runs.txt 17 20-25":
        Recipe(jobs("." * 16 + "x..xxxxxx"), states="." * 25),
    "runwait4.py --status runs.txt": JOURNAL,
    "runwait4.py --failed runs.txt": JOURNAL,
    "runwait4.py --stats runs.txt": JOURNAL,
    "runwait4.py --show 17 runs.txt": LINE_17,
    "runwait4.py --show 17 --json runs.txt": LINE_17,
    "kill -USR1 $(cat pid)": Recipe(jobs("..."), before=WORKER, after=f"rm hold; {GONE}", states="dd."),
    "kill -USR1 $(cat pid.$(hostname))":
        Recipe(jobs("..."), before=HOST_WORKER, after=f"rm hold; {GONE}", states="dd."),
    "kill $(cat pid.$(hostname))": Recipe(jobs("..."), before=HOST_WORKER, after=GONE, states="ee."),
    "python3 runmaker4-server.py runs.txt": Recipe(jobs(".."), until="grep -q 'serving on' .printed"),
    "python3 runmaker4-client.py -j2 alice": Recipe(jobs(".."), before=SERVER, states="dd"),
    "scp -p alice:.runmaker4.token ~":
        Recipe(jobs("."), before=SERVER, after="runmaker4-client.py alice", states="d"),
    "scp -p ~/.runmaker4.token bob:":
        Recipe(jobs("."), before=SERVER, after="runmaker4-client.py alice", states="d"),
    "grep -m1 '^\"\"\"' tests/*/test_*.py": Recipe(before=CHECKOUT),
    UNITTEST: Recipe(before=CHECKOUT, instead=ONE_TEST),
    'runwait4.py -e runs.txt; runwait4.py --status runs.txt | '
    'mail -s "runs.txt is over, exit status $?" "$USER"': Recipe(
        "d true\n! false\n#RUN barrier check\n. true\n", after="grep 'exit status 1$' mail", status=None),
    # the first day
    "ssh bob runmaker4.py --version": Recipe(),
    "ssh bob runwait4.py --check-locks /shared > bob.says & runwait4.py --check-locks /shared; wait; "
    "cat bob.says": Recipe(
        instead={"ssh bob runwait4.py --check-locks /shared > bob.says &": "touch bob.says;", "/shared": "."}
    ),
    "cd /shared":
        Recipe(instead={"cd /shared": ":", "sleep 20": "sleep 0"}, after="./model --seed 8", states="." * 12),
    "for name in alice bob; do":
        Recipe(jobs("...."), instead={"cd /shared && ": "", "-j2": "-j1"}, before="touch hold", states="dddd",
               after=f"[ $(ls pid.alice pid.bob | wc -l) = 2 ]; rm hold; runwait4.py -e runs.txt; {GONE}"),
    "runset4.py --cancel runs.txt 12": Recipe(jobs("." * 12), states="." * 11 + "c."),
    "ssh bob \"kill -USR1 $(cat pid.bob)\"": Recipe(
        jobs("..."), before=WORKER.replace("pid ", "pid.bob "), after=f"rm hold; {GONE}", states="dd."),
    "cat errors.*; runwait4.py --failed runs.txt":
        replace(JOURNAL, before=f"touch errors.bob; {JOURNAL.before}"),
    "sed -i 's/!= 7/!= 70/' model; runmaker4.py -r -j2 runs.txt":
        Recipe(jobs("!."), before="touch model", states="dd"),
    "runwait4.py --report night.html runs.txt":
        replace(JOURNAL, jobs=jobs("d" * 6 + "."), after="test -s night.html", states="d" * 7),
    "runwait4.py --show 7 runs.txt": replace(JOURNAL, jobs=jobs("d" * 6 + "."), states="d" * 7),
    # coming from other tools
    "printf 'echo a\\necho b\\n#DISBATCH BARRIER CHECK\\necho c\\n' > tasks":
        Recipe(after="sed -n 3p runs.txt | grep -x '#RUN barrier check'", states="ddd"),
    "runset4.py runs.txt --add-list list --colsep , --template 'simulate --a {1} --b {2}'":
        Recipe(files={"list": "1,0.1\n2,0.2\n"}, after="grep -x '[.] simulate --a 2 --b 0.2' runs.txt",
               states=".."),
    "seq 6 > list": Recipe(states="dddddd"),
    "seq 1000 | runset4.py runs.txt --add-list - --template 'SLURM_ARRAY_TASK_ID={} bash job.sh'":
        Recipe(after="[ $(grep -c '^[.] SLURM_ARRAY_TASK_ID=[0-9]* bash job.sh$' runs.txt) = 1000 ]"),
    "runset4.py --list --match 'SLURM_ARRAY_TASK_ID=17 *' runs.txt":
        Recipe("#RUN timeout=2h\n. SLURM_ARRAY_TASK_ID=1 bash job.sh\n. SLURM_ARRAY_TASK_ID=17 bash job.sh\n",
               states=".."),
    "runset4.py --set=new --state=held runs.txt 17": Recipe(jobs("d" * 16 + "x"), states="d" * 16 + "."),
    "runset4.py --set=new runs.txt 17": Recipe(jobs("d" * 16 + "!"), states="d" * 16 + "."),
    "runset4.py --cancel --all runs.txt": Recipe(jobs("d.!"), states="dc!"),
    "runwait4.py --show '*' --json runs.txt | python3 -c 'import json, subprocess, sys": Recipe(
        ". echo loss 0; exec sleep 60\n. echo loss nan; exec sleep 60\n. echo loss 1; exec sleep 60\n",
        before="runmaker4.py -d -j3 --errors errors runs.txt\n"
               "until grep -q 2.out runs.txt.out/journal; do sleep 0.1; done\n"
               "EDITOR=\"sed -i '1i #RUN timeout=1h'\" runset4.py --edit runs.txt",
        after="[ $(grep -c ^r runs.txt) = 2 ] && grep '^c echo loss nan' runs.txt\n"
              "runset4.py --cancel --all runs.txt", states="ccc"),
    "seq 800 | runset4.py runs.txt --add-list - --template 'work # {}'": Recipe(states="." * 800),
    "seq 1000 | runset4.py runs.txt --add-list - --template 'HQ_TASK_ID={} ./task.sh'":
        Recipe(after="[ $(grep -c '^[.] HQ_TASK_ID=[0-9]* ./task.sh$' runs.txt) = 1000 ]"),
    "printf '# a task per line\\necho a\\n\\necho b; sleep 1\\nfalse\\n' > mywork.tasks":
        Recipe(after="cat work/1.out; test -s timeline.json", states="dd!", status=None),
    "printf '#!/bin/sh\\nsleep 1; wc $1.txt > $1.out; echo line $JOB_ID on $SLAVE_IP\\n' "
    "> job_script.sh":
        Recipe(after=f"{GONE}; grep -q 'line 1 on 192' logs/1.out; test -s data_1.out", states="dd"),
    "echo 192.168.1.201 >> workers":
        Recipe(jobs("...."), after="runmaker4.py -1 --slots @workers runs.txt", states="ddd."),
    "mkdir -p jobqueue": Recipe(after=f"{GONE}; test -s runs.txt.out/journal", states="ddd"),
    "runmaker4.py -d --follow -j4 --pidfile pid.$(hostname) --errors errors.$(hostname) runs.txt": WAITS,
    "until [ -e stop ]; do python3 docs/convert.py fjd jobqueue | runset4.py -q runs.txt --add-list - --new; "
    "sleep 2; done":
        Recipe(before="(until grep -q 1.conf runs.txt; do sleep 0.1; done; sleep 1; touch stop) 2> waited &",
               after="[ $(grep -c 1.conf runs.txt) = 1 ]", instead={"sleep 2": "sleep 0.2"}),
    "printf '%s\\n' 'test0:' '-minhosts: all' 'alice: \"echo hello, world\"' 'bob: \"sleep 60\"' "
    "'-timeout: 1s' end > tests.conf":
        Recipe(files={"tests.txt": ""}, after="grep '^d echo' tests.txt; grep '^! sleep' tests.txt",
               # a second is short on a busy machine
               instead={"& sleep 1": "& until [ -s .runmaker4.token ]; do sleep 0.05; done",
                        "-timeout: 1s": "-timeout: 5s"}),
    "runmaker4-client.py --resume -j2 alice":
        Recipe(jobs("e."), before=SERVER, after="grep -c ^d runs.txt", states="dd"),
    "runmaker4-client.py --follow alice":
        Recipe(jobs("."), before=SERVER, until="grep '^d' runs.txt", states="d"),
    "python3 docs/convert.py netjobs testconfig.txt | runset4.py tests.txt --add-list -": Recipe(
        files={"tests.txt": ""}, after="grep together= tests.txt"),
    "runmaker4-server.py --exit-when-done tests.txt": Recipe(until="test -e .runmaker4.token"),
    "python3 docs/convert.py netjobs testconfig.txt": Recipe(),
    "runwait4.py -e runs.txt": Recipe(jobs("dx")),
    "ls jobqueue/*.sh | runset4.py runs.txt --add-list - --template './{}' --new": Recipe(
        jobs("."), files={"jobqueue/a.sh": "#!/bin/sh\n"}, after="runmaker4.py -q runs.txt", states="dd"),
    "runset4.py --cancel runs.txt --match './job_script.sh data_1'": Recipe(
        ". ./job_script.sh data_1\n", states="c"),
    "runmaker4.py --slots @workers --runner 'env $(cat env.$SLAVE_IP)' runs.txt": Recipe(
        ". echo $A > a; sleep 0\n", files={"env.alice": "A=1\n", "env.bob": "A=1\n"}, states="d",
        after="[ $(cat a) = 1 ]"),
    "runset4.py --set=. --state='!' tests.txt": Recipe(after="grep '^[.] true' tests.txt"),
    # clusters
    "for host in alice bob; do":
        Recipe(jobs("...."), instead={"-j0": "-j1"}, before="touch hold", states="dddd",
               after="[ $(ls pid.alice pid.bob | wc -l) = 2 ]; rm hold; runwait4.py -e runs.txt; "
                     f"{GONE}; test -s runs.txt.out/journal"),
    "for host in alice bob; do ssh $host \"kill \\$(cat '$PWD/pid.$host')\"; done":
        Recipe(jobs("...."), before=WORKER.replace("pid ", "pid.alice ") + "\nsleep 100 & echo $! > pid.bob",
               after=f"wait; rm pid.bob; {GONE}", states="ee.."),
    "# worker.sh: four runners, wherever Grid Engine has room; each comes back while lines are left":
        Recipe(jobs("e.r"), before="export NSLOTS=2 TMPDIR=$PWD", states="ddd"),
    "# hosts.sh: a runner on each host of one batch job":
        Recipe(jobs("e."), before="PE_HOSTFILE=hosts", files={"hosts": "alice 2 q U\n"}, states="dd"),
    "# condor.sh: a runner, wherever HTCondor has room; it comes back while lines are left":
        Recipe(jobs("e.r"), before="_CONDOR_SCRATCH_DIR=$PWD; set -- 2 4G", states="ddd",
               instead={"export PATH=/usr/local/bin:/usr/bin:/bin ": ": "}),
    "condor_wait condor.log && runwait4.py --status -e runs.txt && ./collect.sh":
        Recipe(jobs("d"), before="condor_wait() { :; }",
               files={"collect.sh": "#!/bin/sh\n"}, states="d"),
    'HOME=$PWD exec python3 runmaker4-client.py --resume -j "$1" --memory "$2" --give-up 2m alice':
        Recipe(jobs(".."), before=f"{SERVER}\nset -- 2 4G", states="dd"),
    "# oar.sh: a runner on four cores of a node; it hires its successor while lines are left":
        Recipe(jobs("e."), before="OAR_JOB_WALLTIME_SECONDS=999", states="dd"),
    'for host in $(uniq "$OAR_NODEFILE"); do':
        Recipe(jobs("e."), before="OAR_NODEFILE=nodes", files={"nodes": "alice\nalice\n"}, states="dd"),
    "docker run --rm -v \"$PWD:$PWD\" -w \"$PWD\" --hostname c1 IMAGE "
    "python3 runmaker4.py --kill-after 5s -j0 runs.txt": Recipe(jobs(".."), states="dd"),
    SAMPLES_LOOP: Recipe(
        files=STEPS, after="PATH=$PWD:$PATH runmaker4.py -j4 runs.txt; "
                           "[ $(runwait4.py --output runs.txt) = 2 ]",
        states="ddddddd"),
    "runset4.py --set=x runs.txt --match total": Recipe(
        files=STEPS, before=f"{read_block('docs/recipes.md', SAMPLES_LOOP)}\n"
                            "PATH=$PWD:$PATH runmaker4.py -q -j4 runs.txt; PATH=$PWD:$PATH "
                            "runmaker4.py -d --follow -j4 --pidfile pid runs.txt",
        after=f"runwait4.py -e runs.txt; runset4.py runs.txt --add '#RUN end'; {GONE}; "
              "[ $(runwait4.py --output runs.txt | tail -n 1) = 4 ]",
        states="ddddddxddddddd"),
    "runset4.py runs.txt --add-list samples --template 'make -s work/{}.done'":
        Recipe(files={"samples": "S1\nS2\n", "make": "#!/bin/sh\nmkdir -p work; : > $2\n"},     # for -s FILE
               after="PATH=$PWD:$PATH runmaker4.py runs.txt; [ -e work/S2.done ]", states="dd"),
    "runset4.py runs.txt --add-list samples --template \\": Recipe(
        files={"samples": "S1\nS2\n", "trim": "#!/bin/sh\n", "align": "#!/bin/sh\n"},
        after="runmaker4.py runs.txt; runset4.py --set=. runs.txt 1 && runmaker4.py runs.txt", states="dddd",
    ),
    "runset4.py --set=d --state=. runs.txt $(runwait4.py --show '*' --json runs.txt | python3 -c "
    "'import json, sys":
        Recipe(jobs("..") + ". [ -e made ]\n", before="cp runs.txt old; runmaker4.py -q runs.txt && false; "
                                                      "cp old runs.txt; : >made",
               after="[ $(grep -c '\"event\": \"end\"' runs.txt.out/journal) = 4 ]", states="ddd"),
    "runset4.py --set=x --state=r runs.txt": Recipe(jobs("rd"), states="xd"),
    "runset4.py --set=x runs.txt 7 104": Recipe(jobs("." * 104), after="[ $(grep -c ^x runs.txt) = 2 ]"),
    "runmaker4.py -j8 --runner 'OMPI_MCA_orte_tmpdir_base=/tmp/mpi.$(id -un).$RUNMAKER4_SLOT' "
    "runs.txt":
        Recipe("#RUN slots=4\n. mpirun -n 4 simulate --grid 1\n. mpirun -n 4 simulate --grid 2\n",
               states="dd", after="[ $(grep -c -e '--grid 2' .printed) -ge 2 ]"),
    "printf '%s\\n' alice alice bob bob > cores": Recipe(states="d"),
    "runset4.py --cancel runs.txt 17 20": Recipe(jobs("r" * 20), after="[ $(grep -c '^c' runs.txt) = 2 ]"),
    "runwait4.py --check-locks /shared": Recipe(instead={"/shared": "."}),
    "# workers.sh: four runners, wherever Slurm has room; each hires its successor while lines are "
    "left": BATCH,
    "# nodes.sh: a runner on each node; COMPLETED if each line of runs.txt is done or held": BATCH,
    "# served.sh: the first node has runs.txt, and hands its lines to a client on each node":
        replace(BATCH, instead={"$(hostname)": "localhost"}),
    "# steps.sh: Slurm places each line, and has its CPUs and memory bound and counted": BATCH,
    "# gpus.sh: one line at once on each GPU": BATCH,
    """export SLURM_JOB_END_TIME=$(SLURM_TIME_FORMAT=%s squeue -h -j "$SLURM_JOB_ID" -o '%A %e' |""": Recipe(
        # all tasks of an array; the last one has the id of the array
        before="SLURM_JOB_ID=7; squeue() { printf '%s\\n' '77 3' '6 4' '7 5' '70 6'; }",
        after='[ "$SLURM_JOB_END_TIME" = 5 ]',
    ),
    "# queue.sh: runs.txt is Snakemake's queue": Recipe(),          # tests/lists/test_snakemake.py
    "runmaker4.py -d --follow -j0 --pidfile pid.$(hostname) --errors errors.$(hostname) runs.txt":
        Recipe(jobs("."), before="snakemake() { runwait4.py -e runs.txt; }", states="d",
               after=f"kill $(cat pid.*); {GONE}"),
    "sbatch --array=2 workers.sh": Recipe(),
    "job=$(sbatch --parsable nodes.sh)": Recipe(),
    "sbatch --array=0-3 gpus.sh": Recipe(),
    "runwait4.py --status -e runs.txt || exit": Recipe(jobs("dd")),
    "cp runs.txt try.txt": Recipe(jobs("dd")),
    "scancel -b -s USR1 1234": Recipe(),
    "scancel -s USR1 1234": Recipe(),
    "runset4.py runs.txt --add 'CUDA_VISIBLE_DEVICES=$RUNMAKER4_SLOT train --seed 1'": Recipe(states="d"),
    "printf '%s\\n' alice bob > workers": Recipe(jobs(".."), states="dd"),
    "OMP_NUM_THREADS=1 runmaker4.py -j0 runs.txt": Recipe(
        '. [ "$OMP_NUM_THREADS" = 1 ]\n', states="d"),
    "runmaker4.py -d --name gpu --slots 0,1 --pidfile gpu.$(hostname) --errors errors.gpu runs.txt": Recipe(
        "#RUN host=gpu\n. true\n#RUN host=cpu\n. true\n", after="runwait4.py -e runs.txt", states="dd"),
    "cat runs.txt": Recipe(jobs(".")),
    "runmaker4-server.py --host localhost runs.txt": Recipe(jobs("."), until="grep 'serving on' .printed"),
    "ssh -f -N -L 9998:localhost:9998 alice": Recipe(jobs(".."), before=SERVER, states="dd"),
    # jobs over TCP
    "kill $(cat pid.server)": Recipe(
        jobs("."), before="runmaker4-server.py -d --pidfile pid.server runs.txt", after=GONE, states="."),
    "runmaker4-server.py -d --pidfile pid.server --errors errors.server runs.txt":
        Recipe(jobs(".."), after=f"kill $(cat pid.server); {GONE}", states="dd"),
    "echo '#RUN send=./convert,{2} fetch={3}' > runs.txt": Recipe(
        before="mkdir in; echo a > in/1; echo b > in/2; printf '#!/bin/sh\\ncp $1 $2\\n' > convert; "
               "chmod +x convert",
        instead={"-d --errors errors.server": "-d --pidfile pid.server",
                 "--pidfile pid --errors errors ": ""}, states="dd",
        after=f"cmp in/2 out/2.pdf; {GONE}"),
    "echo '#RUN scratch=yes send=./simulate,{2} fetch={3}/,{4}:always' > runs.txt": Recipe(
        before="mkdir in; echo a > in/a.1; echo b > in/b.1; "
               "printf '#!/bin/sh\\ncp $1 $2; echo log\\n' > simulate; chmod +x simulate",
        instead={"-d --errors errors.server": "-d --pidfile pid.server", "--errors errors alice": "alice"},
        states="dd", after=f"runwait4.py -e runs.txt; cmp in/b.1 out/b/b.1; grep log logs/a; {GONE}"),
    # how it works
    "nohup runmaker4.py -j4 runs.txt &": Recipe(jobs(".."), after="wait", states="dd"),
    """grep -a '^+' log | grep -av -e '): forked "' -e '): exit 0 "'""": Recipe(),
    "runwait4.py --stats --json runs.txt": JOURNAL,
    "runwait4.py --report page.html runs.txt": JOURNAL,
    "runwait4.py --timeline timeline.json runs.txt": JOURNAL,
    # the figures, one test of each
    "RUNMAKER4_TEST_FULL=1 python3 -m unittest tests.orders.test_storm":
        Recipe(before=CHECKOUT, instead={"=1": "=", "test_storm": "test_storm.TheProof"}),
    "RUNMAKER4_TEST_FULL=1 python3 -m unittest tests.orders.test_simulation":
        Recipe(before=CHECKOUT, instead={"=1": "=", "test_simulation": "test_simulation -k a_seed_makes"}),
    "RUNMAKER4_TEST_REAL=1 python3 -m unittest tests.real.test_nfs tests.real.test_power":
        Recipe(before=CHECKOUT, instead={"=1": "=", "test_power_cuts": "test_power_cuts.RealDisk"}),
    "python3 -m tests.bench tcp_many":
        Recipe(before=CHECKOUT, instead={"tcp_many": "--quick --rounds 1 tcp_many"}),
    "python3 -m tests.bench beside":
        Recipe(before=CHECKOUT, instead={"beside": "--help"}),
    "python3 -m unittest tests.file.test_claiming":
        Recipe(before=CHECKOUT, instead={"tests.file.test_claiming": "tests.docs.test_packaging.Project"}),
    "python3 -m tests.orders.simulation --schedules 1000000 --planted ''":
        Recipe(before=CHECKOUT, instead={"1000000": "20"}),
    "python3 -m tests.orders.simulation":
        Recipe(before=CHECKOUT, instead={"tests.orders.simulation": "tests.orders.simulation --schedules 2"}),
    "python3 -m tests.orders.simulation --seed 7": Recipe(before=CHECKOUT),
    "python3 -m tests.shape *.py": Recipe(before=CHECKOUT),
    "python3 -m tests.bench": Recipe(before=CHECKOUT, instead={"tests.bench": "tests.bench --help"}),
    "python3 -m tests.bench --quick --rounds 1 status": Recipe(before=CHECKOUT),
    "python3 -m tests.bench --rounds 3 beside":
        Recipe(before=CHECKOUT, instead={"--rounds": "--help --rounds"}),
}

# Blocks that are job files, by their first lines: how they are run.  All their jobs must be done then
JOB_FILES = {
    ". prepare": "runmaker4.py -j4 runs.txt",
    "#RUN hours=20:00-07:00,sat,sun":
        "sed -i 's/hours=[^ ]*/hours=00:00-24:00/' runs.txt; runmaker4.py -j4 runs.txt",
    "#RUN limit=matlab:5": "runmaker4.py -j8 runs.txt",
    "#RUN slots=2": "runmaker4.py -j8 runs.txt",
    "#RUN slots=4": "runmaker4.py -j8 runs.txt",
    "#RUN host=cpu": "for name in cpu gpu; do runmaker4.py --name $name --slots 0 runs.txt || true; done",
    "#RUN memory=4G,16G": "runmaker4.py --memory 60G runs.txt",
    "#RUN shell=bash": "export MODULESHOME=$PWD/modules\nrunmaker4.py --plain runs.txt > printed\n"
                       "grep -x 'sim --seed 1' printed; grep -x 'gcc/12 --seed 2' printed",
    "#RUN together=test1 host=alice min-hosts=2":
        f"{SERVER.replace('runs.txt', 'runs.txt --exit-when-done')}\n"
        "for host in alice bob carol; do runmaker4-client.py --follow --name $host localhost & done; wait",
    "#RUN scratch=yes send=./simulate,in/{2} fetch=out/{2}/,logs/{2}:always":
        "mkdir in bob; echo a > in/a; echo b > in/b; "
        "printf '#!/bin/sh\\ncp $1 result.dat; mkdir plots; touch plots/1; echo log\\n' > simulate; "
        "chmod +x simulate\n"
        f"{SERVER.replace('runs.txt', 'runs.txt --exit-when-done')}\n"
        "(cd bob; runmaker4-client.py localhost); wait; cmp in/b out/b/result.dat; ls out/a/plots/1; "
        "grep log logs/b",
    "#RUN send=./convert,{2} fetch={3}":
        "mkdir in bob; echo a > in/1.png; echo b > in/2.png; printf '#!/bin/sh\\ncp $1 $2\\n' > convert; "
        f"chmod +x convert\n{SERVER.replace('runs.txt', 'runs.txt --exit-when-done')}\n"
        "(cd bob; runmaker4-client.py localhost); wait; cmp in/2.png out/2.pdf",
}
PICTURES = {"executing `echo a; sleep 1s; echo A'",         # tests/runner/test_output.py
            # test_the_example_of_a_test_runs
            '"""Promise: a line that is appended while a job runs is run."""',
            "5 jobs: 1 new, 2 running, 1 done, 0 failed, 0 error, 1 held",
            "12 jobs: 8 new, 4 running, 0 done, 0 failed, 0 error, 0 held",     # tests/real/test_hosts.py
            "line 7: exit 1 on bob, 20:54:54, after 20s, <39.1M",
            # docs/services.md, for podman, systemd and cron
            "FROM IMAGE", "[Service]", "PATH=/usr/local/bin:/usr/bin:/bin",
            "   934 additions by alice nfs4",                                      # tests/real/test_locks.py
            "# profile/config.yaml", "# condor.sub: condor_submit condor.sub",
            # docs/architecture.md
            "                         job file          lock file (.runs.txt.lock)"}
ELSEWHERE = {           # commands that others run
    "pip install .": "tests/real/test_packaging.py",
    "python3 -m tests.real.rigs tools": ".ci/run",
    "python3 -m tests.real.rigs newer": ".ci/run",
    "python3 -m docs.install.make": "tests/docs/test_packaging.py",
    "python3 -m docs.install.numbers": "tests/docs/test_documents.py",
    "cp -p runs.txt new && mv new runs.txt": "tests/real/test_fs.py",
    ".ci/run all": "nobody: it takes hours",
    "bash findings/NAME.sh": "nobody: it gets packages",
}
# Programs whose commands users of other tools type, and that nobody runs here
OTHERS = set("""
make nq tsp disBatch parallel hq fjd-recruiter fjd-dispatcher cli.py remove_slave NetJobs.py sacct squeue
condor_submit snakemake scontrol qsub qconf qmod qrsh bsub gluster ceph xargs podman systemctl
""".split())
TEXTS = {  # of several words, neither options, comments nor directives, and no commands for our users
    # what the project's rules name
    "PROGRAM: what is wrong (what to do)", "mypy --strict", "type: ignore",
    # parts of commands, and names of what is asked for
    "&& rm in/1.png", "exec 3>file", "python3 -u", "echo a &&", ".echo b", "else echo b", "env -i setsid",
    "cp -r docs/install/share/. ~/.local/share",
    "runmaker4.py -j2", "simulate | tee log", "set -o pipefail", "server &", "[[ ]]", "CMD bash -c JOB",
    "sim &> log", "sim > log 2>&1", "set -e", "ulimit -n", "chmod 600", "chmod a-w db", "barrier check",
    "ssh -S none", "ssh -S none -tt \"$SLAVE_IP\"", "tail -f", "tail -F runs.txt.out/7.out", "kill -9",
    "options(warn = 2)", "kill_sig = SIGUSR1", "job_max_vacate_time = 3600", "request_gpus = 2",
    "sbatch --export=NONE", "sync -f", "sync -f FILE", "chmod -R g+rX runs.txt.out",
    "chgrp lab . runs.txt; chmod 2770 .; chmod 660 runs.txt", "loginctl enable-linger", "source /etc/profile",
    "docker run --rm --init IMAGE CMD",
    'tail -n +2 samples.tsv | while read -r s reads ref || [ "$s" ]; do',
    "pandas.read_json(\"out.json\", lines=True, dtype=False)",
    "polars.read_ndjson(\"out.json\", infer_schema_length=None)",
    "FROM read_json_auto('out.json', sample_size=-1)",
    "open(\"table.csv\", newline=\"\", errors=\"replace\")", "ssh -L 8000:localhost:8000 alice",
    # commands of other tools, which ours replace or are compared with
    "deps = [1, 2]", "ls | parallel ./sim", "sem -j3",
    ". CUDA_VISIBLE_DEVICES=$RUNMAKER4_SLOT CMD",
    "sh ,1a2084aebb8.5117", "conda activate", "python3 -c 'import asyncio, argparse'",
    "python3 -c 'import argparse'", "runwait4 --status", "runset4 --add", "kill -USR1",
    "tar xf code.tar &&", "send=old/{2} fetch=ck/{2}:always", "cp -p ck/a old/a",
    "sbatch --array=1-1000 job.sh", "seq 1 5 1000", "scancel 1234_17", "runwait4.py --check-locks DIR",
    "SESSION_SUSTAIN_TIME = 60", "scancel 1234", "bash -c", "wait -n", "ulimit -t",
    "generate | sed 's/^/. /' >> runs.txt", "sed -u",
    "eval {}", "[ -v {} ]", "n={}; echo $((n*2))", "printf -v", "test -v", "sh -c", "find -exec sh",
    "env -S", "python3 -c {}", "date -d 'tomorrow 7:00'",
    "sh -c 'exec runmaker4-client.py --slots \"$CUDA_VISIBLE_DEVICES\" \"$@\"' sh",
}
# of other programs
FOREIGN_OPTIONS = set("""
--strict --schedules --planted --seed --out --in --image --array --mem --wait
--exclusive --begin --end_when_jobs_are_done
--ntasks-per-node --time --quick --query-gpu --format --bind-to --host --hostname --cpus --rm --grid
--rounds --nodes --ntasks --cpus-per-task --mem-per-cpu --gres --dependency --exact --user --scope
--parsable --kill-on-invalid-dep --open-mode --a --b --results --retry-failed --halt --time-limit
--no-print-directory --heartbeat --userns --init --now --checkpoint --beta --gamma --directory
--project --kill --workdir --cleanup --transferfile --return --bar --eta --memfree --shuf --profile
--immediate-submit --notemp --kill-on-bad-exit --mpi --export
""".split())


# -- the output that is shown --------------------------------------------------------------------------------

def without_chance(text: str) -> list[str]:
    """The lines of an output, with words for what differs from run to run: hosts, processes, times, ..."""
    for pattern, word in (
        (r"\((?:[\w.-]+),\d+\): ", "(HOST,PID): "),
        (r"\b(?:\d+m )?\d+(?:\.\d+)?s\b", "TIME"),
        (r"(client\.py: )[\w.]+:", r"\1SERVER:"),
        (r"\b[0-9a-f]{32}\b|\(shown on a terminal only\)", "TOKEN"),
        (r"written to .*\)", "written to FILE)"),
        (r"\bport \d+", "port PORT"),
        (r"(?m)^(\d+,done,0),[\d.]+,[\w.-]+,", r"\1,SECONDS,HOST,"),
        (r" +", " "),
        (r"runs\.txt on [\w.]+,", "runs.txt on SERVER,"),
        (r"\([\d.]{7,}\)", "(ADDRESS)"),
        (r"\S*python[\d.]* (?:/\S*/)?(?=run)", ""),
    ):
        text = re.sub(pattern, word, text)
    return text.splitlines()


def differences(shown: str, printed: str) -> str:
    """What is shown and was not printed, or ''; `...`: any lines; lines of jobs at once: any order."""
    wanted, found = without_chance(shown), without_chance(printed)
    missing = Counter(line for line in wanted if line != "...") - Counter(found)
    if missing:
        return f"not printed: {sorted(missing)}"
    if "..." not in wanted and len(wanted) != len(found):
        return f"{len(found)} lines were printed, {len(wanted)} are shown"
    rest = iter(found)
    ordered = [line for line in wanted
               if line != "..." and "(HOST,PID)" not in line and "executing" not in line]
    return next((f"not printed in this order: {line}" for line in ordered if line not in rest), "")


# -- the tests -----------------------------------------------------------------------------------------------

def shell_text(command: str, recipe: Recipe) -> str:
    """What the shell is to run: the command, with a port of its own for TCP, and what is to be around it."""
    for old, new in recipe.instead.items():
        command = command.replace(old, new)
    strict = "set -e" if recipe.status == 0 else ":"
    check = f"[ $? = {recipe.status} ] || exit 99" if recipe.status else ":"
    text = "\n".join([recipe.before, strict, command, check, "set -e", recipe.after])
    text = re.sub(r"(runmaker4-(?:server|client)\.py)(?= )", rf"\1 --port {free_port()}", text)
    return re.sub(r"(runmaker4-client\.py.*) alice\b", r"\1 localhost", text)


class Commands(Case):
    """What can be typed or pasted works."""

    def setUp(self) -> None:
        super().setUp()
        self.bin = self.dir / "bin"
        self.bin.mkdir()
        scripts = {script: f"exec {PYTHON} {SCRIPTS_AT / script} \"$@\"" for script in SCRIPTS}
        for name, body in {**STUBS, **scripts, "python3": f"exec {PYTHON} \"$@\""}.items():
            (self.bin / name).write_text(f"#!/bin/sh\n{body}\n")
            (self.bin / name).chmod(0o755)

    def environ(self, extra: Optional[dict[str, str]] = None) -> dict[str, str]:
        return {**super().environ(extra), "PATH": f"{self.bin}:{os.environ['PATH']}"}

    def pieces(self) -> list[Piece]:
        found: dict[str, Piece] = {}
        for document in DOCUMENTS:
            for piece in read_pieces(document):
                known = found.setdefault(piece.text, piece)
                known.shown = known.shown or piece.shown
        return list(found.values())

    def test_every_command_runs(self) -> None:
        """Of the same text only one is run; what everybody meets first always, the rest in full size."""
        todo, unknown, used = [], [], set()
        for piece in self.pieces():
            first = first_line(piece.text)
            recipe = RECIPES.get(first)
            ours = OURS.search(piece.text)
            if piece.kind == "runs.txt" and first in JOB_FILES:
                command = Piece(piece.place, "sh", JOB_FILES[first])
                jobs_there = len(re.findall("(?m)^[.] ", piece.text))
                todo.append((command, Recipe(piece.text + "\n", states="d" * jobs_there)))
            elif recipe and piece.kind in ("sh", "inline"):
                todo.append((piece, recipe))
            elif piece.kind == "inline" and ours and " " in piece.text and piece.text not in TEXTS:
                if ours[0] in BY_SCRIPT:
                    todo.append((piece, BY_SCRIPT[ours[0]]))
                else:
                    unknown.append(f"{piece.place}: {piece.text}")
            elif piece.kind != "inline" and first not in PICTURES:
                unknown.append(f"{piece.place}: {piece.kind} block: {first}")
            used.add(first)
        self.assertEqual(unknown, [], "nobody knows how to run these")
        stale = {*RECIPES, *JOB_FILES, *PICTURES, *ELSEWHERE, *TEXTS} - used
        self.assertEqual(stale, set(), "these are in no document any more")
        todo = [one for one in todo
                if FULL or (one[0].place.startswith(OFTEN) and one[1].before != CHECKOUT)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            # the long ones
            todo.sort(key=lambda one: not re.search("sleep|resume|ajob|-j2 alice", one[0].text))
            for (piece, _), fault in zip(todo, pool.map(self.fault, *zip(*todo), range(len(todo)))):
                with self.subTest(place=piece.place, command=piece.text):
                    self.assertEqual(fault, "", fault)

    def fault(self, piece: Piece, recipe: Recipe, number: int) -> str:
        """Run a command in a directory of its own; what is wrong with how that went, or ''."""
        home = self.make_home(f"{number}", recipe)
        with open(home / ".printed", "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as out:
            command = shell_text(piece.text, recipe)
            words = ("python3", "-c", TYPED) if recipe.typed else ("sh", "-c")
            process = self.start(*words, command, cwd=home, stdout=out, stderr=out,
                                 start_new_session=True, env={"HOME": str(home), "TERM": "dumb"})
        wrong = self.await_end(process, recipe.until, home)
        printed = (home / ".printed").read_text(errors="replace")
        if recipe.until and not wrong:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(DEADLINE)
        states = self.states(f"{number}/runs.txt") if recipe.states else ""
        if states != recipe.states:
            wrong = wrong or f"states are {states}, not {recipe.states}"
        wrong = wrong or ("a traceback" if "Traceback" in printed else "")
        wrong = wrong or (differences(piece.shown, printed) if piece.shown else "")
        return f"{wrong}: {command}\n{printed}" if wrong else ""

    def make_home(self, name: str, recipe: Recipe) -> pathlib.Path:
        """A directory with the scripts and the files that a command needs."""
        home = self.dir / name
        runs = {"runs.txt": recipe.jobs} if recipe.jobs else {}
        for file, text in {**FILES, **runs, **recipe.files}.items():
            path = home / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)
        for script in SCRIPTS:
            (home / script).symlink_to(SCRIPTS_AT / script)
        (home / "docs").mkdir(exist_ok=True)
        (home / "docs/convert.py").symlink_to(ROOT / "docs/convert.py")
        return home

    @staticmethod
    def await_end(process: subprocess.Popen[bytes], until: str, home: pathlib.Path) -> str:
        """Wait until a command has ended, or has done its work, if it does not end; what is wrong, or ''."""
        end = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < end:
            if until and subprocess.run(["sh", "-c", until], cwd=home, stdout=subprocess.DEVNULL, check=False,
                                        stderr=subprocess.DEVNULL).returncode == 0:
                return ""
            time.sleep(0.05)
        if until or process.returncode is None:
            return "it has ended too early" if process.returncode is not None else "not within 120 s"
        return f"exit status {process.returncode}" if process.returncode else ""


class Texts(Case):
    """What is not run, but can be checked."""

    def test_what_stands_in_backquotes_is_a_command_or_known_not_to_be_one(self) -> None:
        unknown, lines = [], []
        for document in DOCUMENTS:
            for piece in read_pieces(document):
                text = piece.text
                if piece.kind != "inline" or OURS.search(text) or text.split()[0] in OTHERS:
                    continue
                if any(text in known for known in (RECIPES, ELSEWHERE, TEXTS, MESSAGES)):
                    continue
                if text.startswith((". ", "#RUN")):
                    lines.append(text)
                elif " " in text and not text.startswith(("-", "#")):
                    unknown.append(f"{piece.place}: {text}")
        self.assertEqual(unknown, [], "neither commands that are run here, nor in TEXTS")
        awaited = ",".join(re.findall(r"\bafter=(\S+)", "\n".join(lines))).split(",")
        names = [f"#RUN name={name.replace('*', '1')}" for name in awaited]
        self.write("\n".join([*names, *lines, ""]))
        self.assertEqual(self.run_script(RUNMAKER, "--dry-run", "runs.txt").code, 0)

    def test_the_readme_is_short_and_names_the_version(self) -> None:
        text = (ROOT / "README.md").read_text()
        self.assertIn(f"Version {VERSION},", text)
        self.assertLessEqual(len(text.split()), MOST_README_WORDS)

    def test_second_copies_of_a_version_or_port_are_equal(self) -> None:
        newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
        self.assertEqual(newest and newest[1], VERSION, "the newest chapter of CHANGELOG.md")
        self.assertEqual(wire.VERSION, WIRE_VERSION, "what tests/support/wire.py speaks")
        oldest = {name: set(re.findall(r"[Pp]ython(?: |\W+>=)(3\.\d+)(?: or |\")", (ROOT / name).read_text()))
                  for name in ("pyproject.toml", "README.md", *SCRIPTS)}
        self.assertEqual({name: {"3.9"} for name in oldest}, oldest, "the oldest Python")
        for name in "README.md", "docs/over-tcp.md", "docs/clusters.md":
            self.assertIn(f"{PORT}", (ROOT / name).read_text(), "the server's port")

    def test_options_exist(self) -> None:
        known = {*FOREIGN_OPTIONS, *OUR_OPTIONS}      # the latter are refused with the new way
        for script in SCRIPTS:
            known.update(re.findall(r"--[a-z][\w-]*", help_of(script)))
        for document in DOCUMENTS:
            text = (ROOT / document).read_text()
            self.assertEqual(set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) - known, set(), document)

    def test_help_names_the_variables(self) -> None:
        for script in SCRIPTS:
            names: list[str] = []
            if script in (RUNMAKER, RUNCLIENT):
                names += ["RUNMAKER4_LINE", "JOB_ID", "RUNMAKER4_SLOT", "SLAVE_IP", "RUNMAKER4_JOB",
                          "NO_COLOR"]
            if script in (RUNSERVER, RUNCLIENT):
                names.append("RUNMAKER4_TOKEN")
            with self.subTest(script=script):
                self.assertEqual([name for name in names if name not in help_of(script)], [])

    def test_files_that_are_named_exist(self) -> None:
        for document in DOCUMENTS:
            for piece in read_pieces(document):
                if OURS.fullmatch(piece.text):
                    self.assertTrue((ROOT / piece.text).exists(), f"{piece.place}: {piece.text}")
                elif re.fullmatch(r"test_\w+\*?", piece.text):
                    self.assertTrue(list((ROOT / "tests").glob(f"*/{piece.text}.py")),
                                    f"{piece.place}: {piece.text}")

    def test_findings_that_are_named_exist(self) -> None:
        named = set()
        for path in (*ROOT.glob("*.py"), *ROOT.glob("docs/*.md"), *ROOT.glob("tests/**/*.py")):
            named.update(re.findall(r"findings/([a-z][\w-]+\.sh)", path.read_text()))
        self.assertGreater(len(named), 10)
        self.assertEqual([name for name in named if not (ROOT / "findings" / name).exists()], [])

    def test_every_test_module_begins_with_its_promise(self) -> None:
        """tests/README.md prints them by this command."""
        pieces = read_pieces("tests/README.md")
        command, = (piece.text for piece in pieces if piece.text.startswith("grep -m1"))
        printed = self.run_script("sh", "-c", command, cwd=ROOT).out.decode().splitlines()
        self.assertEqual(sorted(line.partition(":")[0] for line in printed),
                         sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/*/test_*.py")))
        self.assertEqual([line for line in printed if len(line.partition('"""')[2]) < 20], [])

    def test_the_example_of_a_test_runs(self) -> None:
        example, = (piece.text for piece in read_pieces("tests/README.md") if piece.kind == "python")
        self.write(example + "\n", "test_example.py")
        ended = self.run_script(PYTHON, "-m", "unittest", "test_example", env={"PYTHONPATH": str(ROOT)})
        self.assertIn(b"\nOK\n", ended.err)

    def test_the_rooms_of_the_tests_are_all_explained(self) -> None:
        text = (ROOT / "tests/README.md").read_text()
        rooms = {path.parent.name for path in ROOT.glob("tests/*/__init__.py")} - {"support"}
        self.assertEqual(set(re.findall(r"\| \[(\w+)\]\(", text)), rooms)
        helpers = re.findall(r"\| ((?:, |`\w+`)+) \| ((?:, |`\w+\.py`)+) \|", text)
        self.assertGreater(len(helpers), 8)
        for classes, modules in helpers:
            names = re.findall(r"[\w.]+", modules)
            texts = "".join((ROOT / "tests/support" / name).read_text() for name in names)
            for name in re.findall(r"\w+", classes):
                self.assertIn(f"\nclass {name}", texts)

    def test_what_the_architecture_names_exists(self) -> None:
        """Classes, their methods and attributes, functions and constants, by the scripts' syntax trees."""
        def names_in(body: list[ast.stmt]) -> set[str]:
            functions = {node.name for node in body
                         if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
            values = {name.id for node in body if isinstance(node, (ast.Assign, ast.AnnAssign))
                      for name in ast.walk(node)
                      if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
            return functions | values

        known = set()
        for script in SCRIPTS:
            tree = ast.parse((ROOT / script).read_text())
            known.update(names_in(tree.body))
            for node in tree.body:
                if isinstance(node, ast.ClassDef):
                    known.update(f"{node.name}.{name}" for name in names_in(node.body))
                    known.update(f"{node.name}.{place.attr}" for place in ast.walk(node)
                                 if isinstance(place, ast.Attribute) and isinstance(place.ctx, ast.Store)
                                 and isinstance(place.value, ast.Name) and place.value.id == "self")
        text = (ROOT / "docs/architecture.md").read_text()
        named = set(re.findall(r"`([A-Z]\w+(?:\.\w+)?|[a-z]+(?:_[a-z]+)+)`", text))
        self.assertGreater(len(named), 200)
        self.assertEqual(sorted(named - known), [])

    def test_the_numbers_are_up_to_date(self) -> None:
        self.assertEqual(numbers.PAGE.read_text("utf-8"), numbers.made(), "python3 -m docs.install.numbers")

    def test_links_lead_somewhere(self) -> None:
        for document in DOCUMENTS:
            for target in re.findall(r"\]\(([^)]+)\)", prose(document)):
                name, _, anchor = target.partition("#")
                path = (ROOT / document).parent / name if name else ROOT / document
                with self.subTest(document=document, link=target):
                    self.assertTrue(path.exists(), path)
                    if anchor:
                        self.assertIn(anchor, anchors(str(path.resolve().relative_to(ROOT))))

    def test_all_fits_into_the_width_of_a_line(self) -> None:
        for document in DOCUMENTS:
            with self.subTest(document=document):
                lines = (ROOT / document).read_text().splitlines()
                self.assertEqual([line for line in lines if len(line) > 120], [])
                self.assertLessEqual(len(lines), MOST_LINES.get(document, 450))
