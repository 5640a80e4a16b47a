"""What each attack found out about each image, kept in RUN/evaluation.npz while the attacks run.

So a stopped evaluation goes on within an attack, and two models can be compared image by image. For each finished
attack there is an array (N,) bool that says which images are right under it. docs/evaluation.md shows how to read them.

The arrays under "parts/" are the state from which an evaluation goes on (`attacks.verdicts`). The text "about" is a
JSON object with the settings of each evaluation, the latest first. Those before the latest have the prefix "others/1/",
"others/2/" and so on, like the "others" of evaluation.json.
"""

from __future__ import annotations

import json
import time
import warnings
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rmcla_fast import sealed
from rmcla_fast.attacks.verdicts import FOOLED, RIGHT, UNKNOWN, Verdicts
from rmcla_fast.errors import UserError
from rmcla_fast.evaluation.settings import Settings, alone_with, set_aside
from rmcla_fast.files import replacing
from rmcla_fast.options import NOT_NEGATIVE, fact
from rmcla_fast.schema import Mismatch, read_as

FILE = "evaluation.npz"
SECONDS_BETWEEN_WRITES = 1.0


@dataclass
class PerImage:
    """One evaluation: what its parts have found out, and which images are right under its finished attacks."""

    settings: Settings
    parts: dict[str, Verdicts] = field(default_factory=dict)  # by their keys
    right: dict[str, Tensor] = field(default_factory=dict)  # by attack, such as "ce20 x 9": (N,) bool


class Keeper:
    """Keeps one evaluation in the file of a run, to which other processes may write as well."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._path = folder / FILE
        evaluations = [one for one in read(self._path) if one.settings == settings]
        self.found = evaluations[0] if evaluations else PerImage(settings)
        self._forgotten: set[str] = set()  # parts
        self._forgotten_attacks: set[str] = set()
        self._written = time.monotonic()
        self._warned = False

    def forget(self, parts: Iterable[str], attacks: Iterable[str]) -> None:
        """Forget what these parts have found out, so that they run again, and which images these attacks left."""
        self._forgotten.update(parts)
        self._forgotten_attacks.update(attacks)
        for key in self._forgotten:
            self.found.parts.pop(key, None)
        for name in self._forgotten_attacks:
            self.found.right.pop(name, None)

    def keep(self) -> None:
        """Write the file if it was last written a second ago or more. Otherwise a later call does."""
        if time.monotonic() - self._written >= SECONDS_BETWEEN_WRITES:
            self.write()

    def write(self) -> None:
        """Write the file.

        If it cannot be written there is one warning, since a full disk must not end an attack that has run for hours.
        """
        self._written = time.monotonic()
        try:
            with alone_with(self._path):
                others = []
                for one in read(self._path, rename=True):
                    if one.settings != self.found.settings:
                        others.append(one)
                        continue
                    for name in set(one.right) - set(self.found.right) - self._forgotten_attacks:
                        self.found.right[name] = one.right[name]
                    for key in set(one.parts) - set(self.found.parts) - self._forgotten:  # of another process
                        self.found.parts[key] = one.parts[key]
                _save(self._path, [self.found, *others])
        except (OSError, UserError) as error:
            if not self._warned:
                why = getattr(error, "strerror", None) or error
                warnings.warn(
                    f"{self._path} cannot be written ({why}); if the attack is stopped, it begins anew", stacklevel=2
                )
            self._warned = True


@dataclass(frozen=True)
class _AboutPart:
    """What "about" says of a part, besides its arrays."""

    seconds: float = fact(NOT_NEGATIVE)
    library: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _AboutEvaluation:
    settings: Settings
    parts: dict[str, _AboutPart]
    attacks: list[str]


@dataclass(frozen=True)
class _About:
    """The text "about" of the file: its evaluations, the latest first."""

    evaluations: list[_AboutEvaluation]


def _prefix(number: int) -> str:
    return f"others/{number}/" if number else ""


def _save(path: Path, evaluations: list[PerImage]) -> None:
    arrays: dict[str, np.ndarray] = {}
    about = []
    for number, one in enumerate(evaluations):
        prefix = _prefix(number)
        for name, right in one.right.items():
            arrays[prefix + name] = right.numpy()
        for key, part in one.parts.items():
            place = f"{prefix}parts/{key}"
            arrays[place], arrays[f"{place}/odd"] = part.right.numpy(), part.odd.numpy()
            if part.distortion is not None:
                arrays[f"{place}/distortion"] = part.distortion.numpy()
        parts = {key: _AboutPart(part.seconds, part.library, part.notes) for key, part in one.parts.items()}
        about.append(_AboutEvaluation(one.settings, parts, list(one.right)))
    arrays["about"] = np.array(json.dumps(asdict(_About(about))))
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        sealed.seal(file)


def read(path: Path, *, rename: bool = False) -> list[PerImage]:
    """Return the evaluations in the file, the latest first; none if it is missing or cannot be believed.

    Args:
        path: the file.
        rename: whether a file that cannot be believed is renamed, so that a new one can be written. If not, a warning
            says why it cannot be believed.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for without end
            raise sealed.Damaged("is not a file")
        with path.open("rb") as file:
            sealed.check_seal(file)
            with np.load(file, allow_pickle=False) as arrays:
                return _evaluations(arrays)
    except FileNotFoundError:
        return []
    except sealed.Damaged as error:
        set_aside(path, str(error), rename=rename)
    except (Mismatch, ValueError, KeyError, zipfile.BadZipFile) as error:
        set_aside(path, f"cannot be used ({error})", rename=rename)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    return []


def _evaluations(arrays: np.lib.npyio.NpzFile) -> list[PerImage]:
    about = read_as(_About, sealed.parse_object(str(arrays["about"]).encode()))
    found = []
    for number, one in enumerate(about.evaluations):
        prefix, shape = _prefix(number), (one.settings.images,)

        def array(name: str, dtype: type, prefix: str = prefix, shape: tuple[int] = shape) -> Tensor:
            values = arrays[prefix + name]
            if values.shape != shape or values.dtype != dtype:
                raise Mismatch(f"{prefix + name} must be {np.dtype(dtype)} of shape {shape}")
            return torch.from_numpy(values)

        parts = {}
        for key, told in one.parts.items():
            place = f"parts/{key}"
            right = array(place, np.int8)
            if not bool(((right >= UNKNOWN) & (right <= RIGHT)).all()):
                raise Mismatch(f"{place} must be {UNKNOWN}, {FOOLED} or {RIGHT} everywhere")
            far = array(f"{place}/distortion", np.float32) if f"{prefix}{place}/distortion" in arrays else None
            odd = array(f"{place}/odd", np.bool_)
            parts[key] = Verdicts(right, odd, far, told.seconds, told.library, list(told.notes))
        found.append(PerImage(one.settings, parts, {name: array(name, np.bool_) for name in one.attacks}))
    return found
