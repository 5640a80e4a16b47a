"""Files that carry a SHA-256 digest of their own content, so that damage is noticed when they are read back."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

_MARK = b"\nrmcla_fast sha256 "
SEAL_BYTES = len(_MARK) + 64 + 1
_PIECE = 1 << 20
DIGEST = "sha256"


class Damaged(Exception):
    """A file does not hold what was written. The text completes a sentence that begins with the file's name."""


def seal(file: BinaryIO) -> str:
    """Append the digest of everything in the file, which is open for reading and writing; return it.

    Readers of zip archives and of arrays ignore what follows their content.
    """
    digest = _digest(file, file.seek(0, os.SEEK_END))
    file.seek(0, os.SEEK_END)
    file.write(_MARK + digest.encode() + b"\n")
    return digest


def check_seal(file: BinaryIO) -> tuple[int, str]:
    """Return (the bytes of content, their digest) of a sealed file that is open for reading, and rewind it.

    Raises:
        Damaged: the file has no seal, which may have been cut off, or another content than was sealed.
    """
    size = file.seek(0, os.SEEK_END) - SEAL_BYTES
    mark = b""
    if size >= 0:
        file.seek(size)
        mark = file.read(SEAL_BYTES)
    if not (mark.startswith(_MARK) and mark.endswith(b"\n")):
        raise Damaged("is cut short or was not written by this version of rmcla_fast: it does not end with a checksum")
    digest = _digest(file, size)
    if mark[len(_MARK) : -1] != digest.encode():
        raise Damaged("is damaged: its checksum does not match its content")
    file.seek(0)
    return size, digest


def _digest(file: BinaryIO, size: int) -> str:
    """Return the SHA-256 of the first `size` bytes."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_PIECE))
    file.seek(0)
    while size > 0:
        read = file.readinto(buffer[: min(size, _PIECE)])  # type: ignore[attr-defined]
        if not read:
            break
        digest.update(buffer[:read])
        size -= read
    return digest.hexdigest()


def dumps(document: dict[str, Any]) -> bytes:
    """Return the document as the text of a JSON file, with a digest of its values as the last entry."""
    return (json.dumps({**document, DIGEST: _digest_of(document)}, indent=2) + "\n").encode()


def load(path: Path) -> dict[str, Any]:
    """Return the document of a JSON file that `dumps` made, without the digest.

    Raises:
        Damaged: the file is no JSON object, or its digest is missing or does not match its values.
        OSError: the file cannot be read.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for without end
        raise Damaged("is not a file")
    document = parse_object(path.read_bytes())
    if document is None:
        raise Damaged("is not a JSON object")
    digest = document.pop(DIGEST, None)
    if digest is None:
        raise Damaged("has no checksum, so it was not written by this version of rmcla_fast")
    if digest != _digest_of(document):
        raise Damaged("was changed or damaged after it was written: its checksum does not match its content")
    return document


def parse_object(text: bytes) -> dict[str, Any] | None:
    """Return the JSON object in UTF-8 text; None for anything else, such as objects that are nested too deeply."""
    try:
        document = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _digest_of(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
