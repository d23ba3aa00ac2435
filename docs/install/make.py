"""Write completions for bash, zsh and fish, and man pages, from the scripts' own parsers and the documents.

    python3 -m docs.install.make        in a checkout: to docs/install/share, which is part of the repository

Run it when an option, a help text or a chapter of CHAPTERS has changed; a test says so.
"""
from __future__ import annotations

import argparse
import importlib
import inspect
import itertools
import pathlib
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from runmaker4 import STATE_WORDS, VERSION, Parser

HERE = pathlib.Path(__file__).resolve().parent
DATE = "2026-11-22"             # of the manual pages
SCRIPTS = "runmaker4", "runset4", "runwait4", "runmaker4-server", "runmaker4-client"
STATES = " ".join(STATE_WORDS.values())
# What is known of an argument by its metavar; any other is a file, as shells have it.
WORDS = {"STATES": STATES, "STATE": STATES.replace("running ", "")}
KINDS = {"DIR": "directory", "HOST": "host", "SERVER": "host",
         **dict.fromkeys(("N", "T", "SIZE", "NAME", "TEXT", "REGEX", "CMD", "A,B", "LINE"), "nothing")}
# Files beside those that are named on the command line, for the pages of the scripts that use them
FILES = {
    ".FILE.lock": (("runmaker4", "runmaker4-server", "runset4", "runwait4"),
                   "beside FILE: where its commands are locked; leave it there"),
    "FILE.out/journal": (("runmaker4", "runmaker4-server", "runwait4"),
                         "each start and each end of a run, with short output, JSON Lines; with `--outdir "
                         "DIR` in DIR"),
    "FILE.out/ID.out, FILE.out/ID.err": (("runmaker4", "runmaker4-server", "runwait4"),
                                         "other output of the job whose line was ID when it started; of later"
                                         " runs ID.out.~1~, ID.out.~2~ and so on"),
    "~/.runmaker4.token": (("runmaker4-server", "runmaker4-client"), "the token, for its owner alone"),
}
# Of the documents, for the page of the job file
CHAPTERS = {
    "docs/reference.md": ("The job file", "States", "Directives", "A job"),
}
MADE = "made by docs/install/make.py"


@dataclass
class Script:
    """What is written down of a script."""
    name: str
    purpose: str
    parser: Parser

    def options(self) -> list[argparse.Action]:
        return [action for action in shown(self.parser._actions) if action.option_strings]

    def arguments(self) -> list[argparse.Action]:
        return [action for action in shown(self.parser._actions) if not action.option_strings]

    @property
    def function(self) -> str:
        """The name of its completion function."""
        return "_" + self.name.replace("-", "_")


def read_script(name: str) -> Script:
    """A script, with its parser."""
    module = importlib.import_module(name)
    first = (inspect.getdoc(module) or "").partition("\n\n")[0]
    return Script(name, " ".join(first.split()).partition(" - ")[2], module.make_parser())


def shown(actions: list[argparse.Action]) -> list[argparse.Action]:
    """Those that --help names."""
    return [action for action in actions if action.help != argparse.SUPPRESS]


def help_of(action: argparse.Action) -> str:
    """As --help prints it, in one line."""
    return " ".join(str(action.help).replace("%%", "%").split())


def takes(action: argparse.Action) -> str:
    """The metavar of an option's argument; '' if it takes none."""
    return "" if action.nargs == 0 else str(action.metavar or action.dest.upper())


def words(action: argparse.Action) -> str:
    """The words that an argument can be, if they are known."""
    return " ".join(map(str, action.choices or ())) or WORDS.get(takes(action), "")


def kind(action: argparse.Action) -> str:
    """What an argument is: 'words', 'directory', 'host', 'nothing' that can be completed, or 'file'."""
    return "words" if words(action) else KINDS.get(takes(action), "file")


def quoted(text: str) -> str:
    """A word for bash and zsh."""
    return "'" + text.replace("'", "'\\''") + "'"


# -- completion ----------------------------------------------------------------------------------------------

# A job file is none of the files where commands are locked: what each shell does about it
NO_COMPANION = """
        local file found=()
        for file in "${COMPREPLY[@]}"; do [[ ${file##*/} == .*.lock ]] || found+=("$file"); done
        COMPREPLY=("${found[@]}")"""
NO_COMPANION_IN_ZSH = " -F '(.*.lock */.*.lock)'"
# fish completes files without a function that we could ask, so we ask for a command that it does not know
NO_COMPANION_IN_FISH = """\
 -fa '(complete -C "no-such-command "(commandline -ct) | string match -rv "(^|/)\\.[^/]*\\.lock\\$")'"""


def bash(script: Script) -> str:
    """For bash-completion, which loads the file by the name of the command."""
    files = {
        "file": "_filedir",
        "directory": "_filedir -d",
        "host": '_known_hosts_real -- "$cur"',
        "nothing": ":",
    }
    cases = ""
    for action in filter(takes, script.options()):
        do = files.get(kind(action)) or f'COMPREPLY=($(compgen -W "{words(action)}" -- "$cur"))'
        cases += f"        {' | '.join(action.option_strings)}) {do}; return ;;\n"
    known = " ".join(word for action in script.options() for word in action.option_strings)
    first = kind(script.arguments()[0])
    last = files[first] + (NO_COMPANION if first == "file" else "")
    return f"""\
# bash completion for {script.name}, {MADE}
{script.function}()
{{
    local cur prev words cword split
    _init_completion -s || return
    case $prev in
{cases}    esac
    $split && return
    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "{known}" -- "$cur"))
    else
        {last}
    fi
}} &&
    complete -F {script.function} {script.name} {script.name}.py
"""


def zsh(script: Script) -> str:
    """For compinit."""
    actions = {"file": "_files", "directory": "_directories", "host": "_hosts", "nothing": " "}

    def argument(action: argparse.Action) -> str:
        what = actions.get(kind(action)) or f"({words(action)})"
        is_job_file = what == "_files" and not action.option_strings
        return f":{takes(action)}:{what}" + (NO_COMPANION_IN_ZSH if is_job_file else "")

    specs = []
    for action in script.options():
        names, text = action.option_strings, re.sub(r"([][:\\])", r"\\\1", help_of(action))
        value = argument(action) if takes(action) else ""
        sign = {True: "=", False: "+"} if value else {True: "", False: ""}
        forms = [name + sign[name.startswith("--")] for name in names]
        before = f"'({' '.join(names)})'{{{','.join(forms)}}}" if len(names) > 1 else forms[0]
        specs.append(before + quoted(f"[{text}]{value}"))
    for action in script.arguments():
        specs.append(quoted(("*" if action.nargs == "*" else "") + argument(action)))
    head = f"#compdef {script.name} {script.name}.py\n# {MADE}"
    return f"{head}\n_arguments -s -S \\\n    " + " \\\n    ".join(specs) + "\n"


def fish(script: Script) -> str:
    """For fish, which loads the file by the name of the command."""
    actions = {"file": " -rF", "directory": " -xa '(__fish_complete_directories)'",
               "host": " -xa '(__fish_print_hostnames)'", "nothing": " -x"}
    lines = [f"# fish completion for {script.name}, {MADE}"]
    first = kind(script.arguments()[0])
    lines.append(f"complete -c {script.name}{NO_COMPANION_IN_FISH if first == 'file' else actions[first]}")
    for action in script.options():
        names = "".join(f" -l {name[2:]}" if name.startswith("--") else f" -s {name[1:]}"
                        for name in action.option_strings)
        value = (actions.get(kind(action)) or f" -xa '{words(action)}'") if takes(action) else ""
        text = re.sub(r"(['\\])", r"\\\1", help_of(action))
        lines.append(f"complete -c {script.name}{names}{value} -d '{text}'")
    return "\n".join(lines) + "\n"


# -- manual pages --------------------------------------------------------------------------------------------

ROFF = {"\\": "\\e", "-": "\\-", "'": "\\(aq", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti"}


def literal(text: str) -> str:
    """Text that a page shows as it is."""
    return re.sub(r"[-\\'`^~]", lambda found: ROFF[found[0]], text)


def guarded(line: str) -> str:
    """A line that roff does not take for a request."""
    return f"\\&{line}" if line[:1] in (".", "'") else line


def verbatim(text: str) -> str:
    """Lines that stay as they are."""
    return "\n".join([".nf", *(guarded(literal(line)) for line in text.rstrip().splitlines()), ".fi"])


def prose(text: str) -> str:
    """Lines of a paragraph, with Markdown's links, code and bold in it, for roff to fill."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", " ".join(text.split()))
    parts = re.split(r"`([^`]*)`", text.replace("\\|", "|"))
    code = [f"\\fB{literal(part)}\\fR" for part in parts[1::2]]
    words = [re.sub(r"\*\*(.*?)\*\*", r"\\fB\1\\fR", literal(part)) for part in parts[::2]]
    return filled("".join(word + bold for word, bold in itertools.zip_longest(words, code, fillvalue="")))


def filled(text: str) -> str:
    """Text in lines that are not too long."""
    return "\n".join(map(guarded, textwrap.wrap(text, 79, break_long_words=False, break_on_hyphens=False)))


def page(name: str, section: int, purpose: str, parts: dict[str, str]) -> str:
    """A page of these chapters."""
    others = [f"{other}(1)" for other in SCRIPTS if (other, section) != (name, 1)]
    if section == 1:
        others.append("runmaker4(5)")
    names = name if section == 5 else f"{name}, {name}.py"
    parts = {"NAME": filled(f"{literal(names)} \\- {literal(purpose)}"), **parts,
             "SEE ALSO": prose(", ".join(f"**{other[:-3]}**{other[-3:]}" for other in others))}
    head = f'.\\" {MADE}\n.TH {name.upper()} {section} {DATE} "runmaker4 {VERSION}"\n'
    return head + "".join(f".SH {title}\n{text}\n" for title, text in parts.items())


def command_page(script: Script) -> str:
    """The page of a command."""
    parser = script.parser
    usage = "\n".join(line.strip() for line in str(parser.usage).splitlines())
    parts = {
        "SYNOPSIS": verbatim(usage),
        "DESCRIPTION": prose(parser.purpose),
        "OPTIONS": options(parser),
        **{title.upper(): prose(text) for title, text in parser.notes.items()},
        "EXIT STATUS": listed(parser.statuses),
        "FILES": listed({path: text for path, (users, text) in FILES.items() if script.name in users}),
        "EXAMPLES": examples(str(parser.description)),
    }
    return page(script.name, 1, script.purpose, parts)


def options(parser: Parser) -> str:
    """The options and arguments, in the groups of --help."""
    text = []
    for group in parser._action_groups:
        if shown(group._group_actions):
            title = str(group.title)            # with FILE and DIR as they are
            text.append(f".SS {literal(title[:1].upper() + title[1:])}")
        for action in shown(group._group_actions):
            value = takes(action) and f"\\fI{literal(takes(action))}\\fR"
            names = [f"\\fB{literal(name)}\\fR" + (value and f" {value}") for name in action.option_strings]
            text += [".TP", ", ".join(names) or value, prose(help_of(action))]
    return "\n".join(text)


def examples(text: str) -> str:
    """Commands, indented in the help, and between them what they are for."""
    lines = textwrap.dedent(text).strip("\n").splitlines()
    parts = itertools.groupby(lines, lambda line: line.startswith(" "))
    return "\n".join(
        ".PP\n" + (verbatim(textwrap.dedent("\n".join(some))) if commands else prose(" ".join(some)))
        for commands, some in parts
    ).removeprefix(".PP\n")


def listed(texts: Mapping[str, str]) -> str:
    """Words, and what each means."""
    return "\n".join(f".TP\n{filled(literal(word))}\n{prose(text)}" for word, text in texts.items())


def job_file_page() -> str:
    """The page of the job file, from the documents."""
    parts = {}
    for document, titles in CHAPTERS.items():
        text = (HERE.parent.parent / document).read_text("utf-8")
        found = dict(re.findall(r"^## (.*)\n((?:(?!## ).*\n)*)", text, re.MULTILINE))
        for title in titles:
            # a paragraph begins behind a heading anyway
            chapter = re.sub(r"(?m)^(\.SS .*\n)\.PP\n", r"\1", "\n".join(blocks(found[title])))
            parts[title.upper()] = chapter.removeprefix(".PP\n")
    return page("runmaker4", 5, "the job file", parts)


def blocks(text: str) -> Iterator[str]:
    """The blocks of a Markdown text: fenced lines, tables, lists, headings, paragraphs."""
    for block in re.findall(r"^```.*\n(?s:.*?)^```$|(?:^(?!```).+\n?)+", text, re.MULTILINE):
        if block.startswith("```"):
            yield ".PP\n" + verbatim("\n".join(block.splitlines()[1:-1]))
        elif block.startswith("|"):
            (_, _, *titles), _, *rows = (
                re.split(r" *(?<!\\)\| *", row.strip("| ")) for row in block.splitlines()
            )
            for first, second, *rest in rows:
                more = "".join(
                    f". {title[:1].upper()}{title[1:]}: {cell}" for title, cell in zip(titles, rest)
                )
                yield f".TP\n{prose(first)}\n{prose(second + more)}"
        elif block.startswith("### "):
            yield f".SS {literal(block[4:].strip())}"
        elif block.startswith("- "):
            for item in re.split(r"^- ", block, flags=re.MULTILINE)[1:]:
                yield f".IP \\(bu 2\n{prose(item)}"
        else:
            yield f".PP\n{prose(block)}"


# -- all of it -----------------------------------------------------------------------------------------------

def made() -> dict[str, str]:
    """The files below share/, and what is in them."""
    files = {"man/man5/runmaker4.5": job_file_page()}
    for script in map(read_script, SCRIPTS):
        name = script.name
        files[f"man/man1/{name}.1"] = command_page(script)
        files[f"man/man1/{name}.py.1"] = f'.\\" {MADE}\n.so man1/{name}.1\n'
        files[f"bash-completion/completions/{name}"] = bash(script)
        files[f"bash-completion/completions/{name}.py"] = f'. "${{BASH_SOURCE[0]%.py}}"     # {MADE}\n'
        files[f"zsh/site-functions/_{name}"] = zsh(script)
        files[f"fish/vendor_completions.d/{name}.fish"] = fish(script)
        # -w alone: fish would not load the completion of a name that is no command
        files[f"fish/vendor_completions.d/{name}.py.fish"] = (
            f"source (status dirname)/{name}.fish     # {MADE}\ncomplete -c {name}.py -w {name}\n"
        )
    return files


def main(share: pathlib.Path = HERE / "share") -> None:
    """Write all files anew."""
    shutil.rmtree(share, ignore_errors=True)
    for name, text in made().items():
        path = share / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
