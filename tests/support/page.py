"""The page of a report, read as a browser reads it; and a browser."""
import html.parser
import json
import pathlib
import re
import shutil
from collections import Counter
from typing import Any, Optional

from tests.support.values import present

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "br", "img", "link", "input"}


def words(text: str) -> str:
    return html.unescape(re.sub("<[^>]*>", "", text))


def browser_command(folder: pathlib.Path) -> list[str]:
    """Return a browser without a window, which keeps its files in this folder, and its options."""
    off = "gpu", "quic", "background-networking", "component-update", "sync"
    return [present(CHROMIUM), "--headless", "--no-sandbox", "--no-first-run", "--virtual-time-budget=5000",
            f"--user-data-dir={folder}/profile", *(f"--disable-{name}" for name in off)]


class Page(html.parser.HTMLParser):
    """A page whose elements all end where they should."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.title = ""
        self.feed(text)
        self.close()
        data = present(re.search('<script type="application/json" id="data">(.*?)</script>', text))[1]
        self.data: dict[str, Any] = json.loads(data)
        self.rows = [dict(zip(self.data["fields"], row)) for row in self.data["rows"]]
        shown = text.partition("<script")[0]
        self.refresh = re.findall('http-equiv="refresh" content="([0-9]+)"', shown)
        self.counts, self.status, self.place, self.command, self.made = (
            words(present(re.search(pattern, shown, re.DOTALL))[1])
            for pattern in ('<h1 id="headline">(.*?)</h1>', "<pre>(.*?)</pre>",
                            '<code class="place">(.*?)</code>', r"<code>\$ (.*?)</code>",
                            '<p id="made">(.*?)</p>'))
        jobs = present(re.search('<table id="jobs">(.*?)</table>', shown, re.DOTALL))[1]
        self.status += "\n" + words(jobs.replace("</td>", " "))
        self.groups = ["|".join(map(words, re.findall("<(?:b|code|small)>(.*?)</", item)))
                       for item in re.findall("<li>(<button.*?)</li>", shown)]

    def failed(self, *fields: str) -> list[list[Any]]:
        """Line, result and more fields of the last runs of lines that are failed or in error."""
        return [[row[field] for field in ("line", "result", *fields)] for row in self.rows
                if row["is_last"] and row["state"] in ("failed", "error")]

    def others(self, *fields: str) -> list[list[Any]]:
        """The same of all other runs."""
        return [[row[field] for field in ("line", "result", *fields)] for row in self.rows
                if not (row["is_last"] and row["state"] in ("failed", "error"))]

    @property
    def outcomes(self) -> Counter[str]:
        """The number of runs by outcome."""
        return Counter(row["outcome"] for row in self.rows if row["outcome"])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Optional[str]]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["title"]:
            self.title += data
