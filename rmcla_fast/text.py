"""How text of users is shown: names of folders, files, classes and networks, which can hold any character.

Names are kept as they are, and so files are found. They are escaped where a line, a table or a picture shows them.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rmcla_fast.errors import need


def did_you_mean(name: str, known: Iterable[str], most: int = 1) -> str:
    """Return "did you mean 'x'? " with the names nearest to an unknown one, in any case of letters; "" without one."""
    near = difflib.get_close_matches(name.lower(), list(known), n=most)
    return f"did you mean {' or '.join(map(repr, near))}? " if near else ""


def counted(count: int, thing: str) -> str:
    """Return "1 file" or "2 files"."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def printable(text: object, shown: Callable[[str], bool] = str.isprintable) -> str:
    r"""Return the text on one line, with an escape such as \n, \x1b or \udcff for each character that is not shown.

    Newlines, control characters, marks that reverse the direction of writing, and bytes that are no UTF-8 (which
    Python reads as lone surrogates) would change the output or could not be encoded.
    """
    return "".join(c if shown(c) else c.encode("unicode_escape").decode() for c in str(text))


def shell_word(text: object) -> str:
    """Return the text as one word of a command that can be pasted into a shell.

    What is not printable is written in the quotes $'...' of bash and zsh, as escaped bytes.
    """
    word = str(text)
    if word.isprintable():
        return shlex.quote(word)
    escaped = (c if c.isprintable() and c not in "'\\" else _escaped_bytes(c) for c in word)
    return f"$'{''.join(escaped)}'"


def _escaped_bytes(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


def markdown(text: object) -> str:
    """Return Markdown that shows the text as it is."""
    return re.sub(r"([\\`*_\[\]<>|&$~])", r"\\\1", printable(text))


def markdown_code(text: object) -> str:
    """Return Markdown that shows the text as code."""
    shown = printable(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    space = " " if "`" in shown else ""  # Markdown removes it
    return f"{fence}{space}{shown}{space}{fence}"


def new_console(*, stderr: bool = False, quiet: bool = False) -> Any:
    """Return a console of rich that shows text as it is: `[red]` is no markup, and `:smile:` is no emoji."""
    console = need("rich.console", "train", "output on a terminal")
    return console.Console(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False)


def say(console: Any, text: object) -> None:
    """Print the text as one line, which a terminal may wrap."""
    console.print(printable(text), soft_wrap=True)


@contextmanager
def utf8_path(folder: Path) -> Iterator[str]:
    """Yield a path of the folder that can be encoded as UTF-8, for a library that has to encode it.

    On Linux a name can be any bytes. Such a folder is opened, and can be reached by its number in this process.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        handle = os.open(folder, os.O_RDONLY)
        try:
            yield f"/proc/self/fd/{handle}"
        finally:
            os.close(handle)
    else:
        yield str(folder)
