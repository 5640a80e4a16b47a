"""Every link within the repository leads to a file, and to a heading of it if it names one. No network is used."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from documentation import PAGES, name_of, read
from run_cases import ROOT

EXTERNAL = re.compile(r"https?://")


def committed() -> set[str]:
    """Return the files that git knows, and their folders; nothing where there is no git."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    files = map(Path, listed.stdout.splitlines())
    return {place.as_posix() for path in files for place in (path, *path.parents)}


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_link_leads_somewhere(path: Path) -> None:
    known = committed()
    for link in read(path).links:
        if EXTERNAL.match(link):
            continue
        place, _, anchor = link.partition("#")
        target = (path.parent / place).resolve() if place else path
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        assert not known or target.relative_to(ROOT).as_posix() in known, f"{link} is not committed"
        if anchor:
            assert anchor in read(target).anchors, f"{link}: the headings are {sorted(read(target).anchors)}"


def test_files_and_targets_that_a_sentence_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for path in PAGES:
        for code in read(path).inline if path.name != "CHANGELOG.md" else []:
            first, *words = code.split() or [""]
            if first == "make":
                assert re.search(rf"^{words[0]}:", makefile, re.MULTILINE), f"{name_of(path)}: {code}"
            for word in (first, *words):
                named = re.fullmatch(r"(benchmarks|csrc|docs|examples|rmcla_fast|tests)/[\w./-]+\.\w+", word)
                if named and f"`{word}` at commit" not in path.read_text():
                    assert (ROOT / word).exists(), f"{name_of(path)}: {code}"


def test_the_table_of_contents_has_every_page() -> None:
    """Sphinx says which page is missing, too, but only where it is installed."""
    contents = (ROOT / "docs/index.md").read_text()
    blocks = re.findall(r"```\{toctree\}\n(.*?)```", contents, re.DOTALL)
    listed = {line for block in blocks for line in block.split()}
    for path in (ROOT / "docs").rglob("*.md"):
        page = path.relative_to(ROOT / "docs").with_suffix("")
        assert page.name == "index" or "_build" in page.parts or page.as_posix() in listed, page
