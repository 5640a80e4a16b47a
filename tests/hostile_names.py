"""Names of folders that act as something else where they are shown, unless they are escaped."""

from __future__ import annotations

import os
from pathlib import Path

NAMES = (
    r"$\frac$ :smile:",  # mathematics of matplotlib that cannot be parsed, and an emoji of rich
    "a$b$c [red][",  # markup of rich; in a path with the next name there is the closing tag [/]
    r"] \$ $unclosed",
    "line\nbreak\ttab\r\n",
    "\x1b[31mred\x07\x08 \u202eright to left\u200f\u2028",  # control characters
    os.fsdecode(b"\xff\xfe no UTF-8 \xc3"),
    "x" * 255,
    "long name " * 25 + "end",
    "é" * 127,
    "_a|b `c` *d* <e> &amp; ``_",  # Markdown; matplotlib leaves out of a legend what begins with an underscore
    "日本語 عربي",  # matplotlib's font lacks the first three
    "-dash {task.description} %s",
    "~nobody",  # a home folder
    "'quotes\" $HOME `id`; exit 1 #\\",  # a shell
    "'tab\t$HOME\\x41",
    " spaces  everywhere ",
)


def nested(root: Path) -> Path:
    """Return the path of a folder whose parents have all of these names."""
    return root.joinpath(*NAMES)
