"""The pages of the documentation as the tests read them: their code, the commands in it, their headings and links."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from run_cases import ROOT

PAGES = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "api").glob("*.md")),
)
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")  # before a block, with the reason why it cannot run here
COMMANDS = ("rmcla", "torchrun", "python", "make", "pip")


class Block(NamedTuple):
    """A block of code on a page."""

    language: str
    code: str
    line: int
    not_run: str  # why the tests do not run it; "" if they do


class Page(NamedTuple):
    """What a page consists of."""

    blocks: list[Block]
    inline: list[str]  # the code within sentences
    links: list[str]  # of links and pictures
    anchors: set[str]  # of its headings


def name_of(path: Path) -> str:
    """Return the page's path from the root of the repository."""
    return path.relative_to(ROOT).as_posix()


@cache
def read(path: Path) -> Page:
    """Return the parts of a Markdown file."""
    page = Page([], [], [], set())
    reason, heading, seen = "", False, dict[str, int]()
    for token in MarkdownIt("commonmark").enable("table").parse(path.read_text()):
        if token.type == "fence":
            line = (token.map or [0])[0] + 1
            page.blocks.append(Block(token.info.strip(), token.content, line, reason))
        if token.type == "html_block" and (marked := NOT_RUN.search(token.content)):
            reason = marked[1]
        elif token.level == 0:
            reason = ""
        if token.type == "inline":
            children = token.children or []
            page.inline.extend(child.content for child in children if child.type == "code_inline")
            addresses = (child.attrGet("href") or child.attrGet("src") for child in children)
            page.links.extend(str(address) for address in addresses if address)
            if heading:
                text = "".join(child.content for child in children if child.type in ("text", "code_inline"))
                anchor = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
                number = seen[anchor] = seen.get(anchor, -1) + 1
                page.anchors.add(f"{anchor}-{number}" if number else anchor)
        heading = token.type == "heading_open"
    return page


def python_blocks(name: str) -> list[str]:
    """Return the code of a page's Python blocks."""
    return [block.code for block in read(ROOT / name).blocks if block.language == "python"]


def commands(block: Block) -> list[list[str]]:
    """Return the commands of a shell block as words, without variables that are set before them."""
    found = []
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"\w+=.*", words[0]):
            words = words[1:]
        if words:
            found.append(words)
    return found


def rmcla_arguments(words: list[str]) -> list[str] | None:
    """Return the arguments of the command `rmcla`, which torchrun may start; None for another command."""
    if words[0] == "rmcla":
        return words[1:]
    if "rmcla_fast.cli" in words and words[0] in ("torchrun", "python"):
        return words[words.index("rmcla_fast.cli") + 1 :]
    return None
