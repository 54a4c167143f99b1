"""A page of markdown as a test sees it: its code by language, its commands, its links."""

import contextlib
import io
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
# Of PNGs that the pages show.
PNG = b"\x89PNG"
_QUOTED_OR_AND = r"""('[^']*'|"[^"]*")|&&"""


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language, in order; "" for those that name none."""
    fenced = re.findall(r"^```([^\n`]*)\n(.*?)^```$", read(page), re.DOTALL | re.MULTILINE)
    return [code for named, code in fenced if named == language]


def commands(page: Path, languages: Sequence[str] = ("console",)) -> list[str]:
    """The commands of the console blocks: a line each, or several joined by && or a backslash."""
    shown = [block for language in languages for block in blocks(page, language)]
    joined = [block.replace("\\\n", " ") for block in shown]
    lines = [line for block in joined for line in block.splitlines() if line.strip()]
    apart = [re.sub(_QUOTED_OR_AND, lambda m: m[1] or "\n", line) for line in lines]
    return [part.strip() for line in apart for part in line.split("\n")]


def launches(page: Path, languages: Sequence[str] = ("console",)) -> list[list[str]]:
    """What stands behind `python -m launch`, as a list of arguments."""
    found = [c for c in commands(page, languages) if c.startswith("python -m launch ")]
    return [shlex.split(command, comments=True)[3:] for command in found]


def execute(page: Path, folder: Path) -> dict[str, Any]:
    """Run the Python of a page in order, one namespace for all; the names it left.

    A fence ```output behind a block is what it prints, letter by letter. A block that begins with
    a comment of a path, e.g. `# my_card.py`, is a file of the reader's: it is written into
    `folder`, too.
    """
    names: dict[str, Any] = {"__name__": page.stem}
    for code, expected in _steps(page):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(code, page.name, "exec"), names)
        assert expected is None or said.getvalue() == expected, f"{page.name}: {said.getvalue()}"
        if named := re.match(r"# ([\w/]+\.py)\n", code):
            (folder / named[1]).parent.mkdir(parents=True, exist_ok=True)
            (folder / named[1]).write_text(code, encoding="utf-8")
    return names


def _steps(page: Path) -> list[tuple[str, str | None]]:
    """Blocks of Python, each with the output that the page shows for it, if any."""
    fence = r"^```python\n(.*?)^```$(?:\n\n```output\n(.*?)^```$)?"
    found = re.finditer(fence, read(page), re.DOTALL | re.MULTILINE)
    return [(match[1], match[2]) for match in found]


def broken_links(page: Path) -> list[str]:
    """Relative links to what is not there: files, or headings of pages."""
    return [link for link in links(page) if not _leads_somewhere(page, link)]


def links(page: Path) -> list[str]:
    """The relative links outside of code."""
    prose = re.sub(r"^```.*?^```$", "", read(page), flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"``.*?``|`[^`\n]*`", "", prose)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in link]


def _leads_somewhere(page: Path, link: str) -> bool:
    place, _, heading = link.partition("#")
    target = page if not place else page.parent / place
    if not target.exists():
        return False
    if target.suffix == ".png":
        return target.read_bytes().startswith(PNG)
    return not heading or heading in _headings(target)


def _headings(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", read(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for text in found}
