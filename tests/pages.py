"""The documentation as data: pages, their code blocks, their commands, their links.

What a block is for stands behind its language:

    ```console           commands behind "$ ", and what they print; run
    ```console slow      run in the slow suite only
    ```console sandbox   run where bubblewrap is installed
    ```console parsed    not run: needs a GPU, a model hub or a clone; checked by `commands`
    ```python            run; with ">>>" as a doctest
    ```toml title="F"    a file; blocks with one title make one file, in order

Printed lines are compared by form: three dots stand for anything, on a line of
their own for any lines; numbers and runs of blanks do not count.
"""

import doctest
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workspace import ROOT, package_folders

GUIDES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
PACKAGES = [folder / "README.md" for folder in package_folders()]
PAGES = [*GUIDES, *PACKAGES]
DOTS = "..."
_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r'title="([^"]+)"')
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: Path
    line: int
    language: str
    words: frozenset[str]
    title: str | None
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One line behind a prompt, with what it is shown to print."""

    block: Block
    line: str
    output: str


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        info = match["info"].strip()
        title = _TITLE.search(info)
        language, *words = _TITLE.sub("", info).split() or [""]
        line = text.count("\n", 0, match.start()) + 1
        found.append(
            Block(page, line, language, frozenset(words), title and title[1], match["text"])
        )
    return found


def commands(block: Block) -> Iterator[Command]:
    """The commands of a console block; a backslash continues one on the next line."""
    text = block.text.replace("\\\n", " ")
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        line, _, output = part.partition("\n")
        yield Command(block, " ".join(line.split()), output)


def files(page: Path) -> dict[str, str]:
    """Title → text, of the files that a page writes; parts are two blank lines apart."""
    parts: dict[str, list[str]] = {}
    for block in blocks(page):
        if block.title is not None:
            parts.setdefault(block.title, []).append(block.text)
    return {title: "\n\n".join(texts) for title, texts in parts.items()}


def write_files(page: Path, folder: Path) -> None:
    """Write the files of a page into ``folder``."""
    for name, text in files(page).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def links(page: Path) -> list[str]:
    """Targets of all links and pictures, code blocks left out."""
    return _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8")))


def anchors(page: Path) -> set[str]:
    """The anchors that headings get on the usual code hosts."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        for heading in _HEADING.findall(text)
    }


def same_form(want: str, got: str) -> bool:
    """True if ``got`` is what a page shows as ``want``: a line of dots stands for any lines."""
    parts = [
        r"(?:.*\n)*?" if line == DOTS else re.escape(line).replace(re.escape(DOTS), ".*") + r"\n"
        for line in _lines(want)
    ]
    return re.fullmatch("".join(parts), "".join(f"{line}\n" for line in _lines(got))) is not None


def _lines(text: str) -> list[str]:
    """Lines that are not empty, with numbers and blanks made equal."""
    lines = (" ".join(_NUMBER.sub("0", line).split()) for line in text.splitlines())
    return [line for line in lines if line]


class ByForm(doctest.OutputChecker):
    """`same_form` for doctests."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return same_form(want, got)
