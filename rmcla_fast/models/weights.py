"""Files of weights, and how weights are put into a network that may have other names or another number of classes."""

from __future__ import annotations

import errno
import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rmcla_fast.models.normalize import Normalize
from rmcla_fast.text import counted

KEYS = ("state_dict", "model", "model_state_dict")  # under which training programs save a state dict


class Misfit(ValueError):
    """A file that holds no weights, or weights that a network cannot take. The text says why."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, or of a state dict that torch.save wrote; see `read_content`."""
    return tensors_of(read_content(path))


def read_content(path: Path) -> Any:
    """Return what a file of weights holds, on the CPU. No code that it might hold is run.

    Raises:
        Misfit: the file is neither of safetensors nor of torch.save, or holds objects other than tensors.
        ImportError: safetensors is not installed.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(9)
    try:
        # A safetensors file begins with the length of its header, which is JSON. Its name may end in anything.
        if len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
            return _safetensors().load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (ImportError, MemoryError):
        raise
    except OSError as error:
        if error.errno != errno.EINVAL:  # which torch raises for an archive that is cut short
            raise
        raise Misfit("it is damaged or cut short") from error
    except Exception as error:  # for content of another program, the libraries raise all kinds of exceptions
        raise Misfit(
            "it must be a safetensors file, or a state dict that torch.save wrote (model.state_dict(), not the model)"
        ) from error


def _safetensors() -> Any:
    try:
        return importlib.import_module("safetensors.torch")
    except ImportError as error:
        raise ImportError(
            "a file of safetensors needs safetensors, which is not installed; pip install safetensors"
        ) from error


def tensors_of(content: Any) -> dict[str, Tensor]:
    """Return the state dict in the content of a file, which may hold it under one of `KEYS`.

    Raises:
        Misfit: there is none.
    """
    inside = [content[key] for key in KEYS if key in content] if isinstance(content, Mapping) else []
    for state in (content, *inside):
        if isinstance(state, Mapping) and state and all(isinstance(one, Tensor) for one in state.values()):
            return {str(name): value for name, value in state.items()}
    raise Misfit(f"neither its content nor an entry {', '.join(KEYS)} in it is a dictionary of tensors")


def put_into(model: nn.Module, weights: Mapping[str, Tensor], num_classes: int) -> list[str]:
    """Put the weights into the model, and return remarks on what stays new.

    The weights may be those of the network inside a model that normalises first, and may have the prefixes of
    DataParallel and of torch.compile. If they were trained for another number of classes, the classifier stays new.

    Args:
        model: the model; its state is changed only if everything fits.
        weights: a state dict.
        num_classes: the number of classes of the model.

    Raises:
        Misfit: tensors are missing, are unexpected, have another shape or kind, or hold NaN or infinity.
    """
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    given = _renamed(model, own, weights)
    kept = {name for name, _ in model.named_buffers()} - own.keys()  # buffers that are in no state dict of this version
    optional = _may_be_missing(model, own)
    shared = {own[name].data_ptr() for name in given if name in own}  # safetensors keeps one name of tied weights
    missing = [
        name for name in own if name not in given and name not in optional and own[name].data_ptr() not in shared
    ]
    unexpected = [name for name in given if name not in own and name not in kept]
    other = [name for name in own if name in given and not _same_kind(own[name], given[name])]
    new, why = list[str](), ""
    if other and not missing and _is_classifier(own, given, other, num_classes):
        new, other, why = other, [], f"has {given[other[0]].shape[0]} classes in these weights and {num_classes} here"
    elif missing and not other and set(missing) == _last_layer(model, own, num_classes):
        new, missing, why = missing, [], "is not among these weights"
    wrong = [
        *_counted(missing, "missing"),
        *_counted(unexpected, "unexpected"),
        *_counted([f"{name}: {_kind(given[name])} instead of {_kind(own[name])}" for name in other], "of another kind"),
    ]
    if wrong:
        raise Misfit("; ".join(wrong))
    taken = {name: value for name, value in given.items() if name in own and name not in new}
    # In the model's own type, in which a large number may become infinite.
    if bad := [name for name, value in taken.items() if not bool(value.to(own[name].dtype).isfinite().all())]:
        raise Misfit(f"NaN or infinity is in {_few(bad)}")
    model.load_state_dict({**model.state_dict(), **taken})
    return [f"the classifier ({_few(new)}) {why}, so it starts with new weights"] if new else []


def _renamed(model: nn.Module, own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with the prefixes removed or added with which the most names are those of the model."""
    plain = {".".join(part for part in name.split(".") if part != "_orig_mod"): one for name, one in weights.items()}
    candidates = [dict(weights), plain]
    while plain and all(name.startswith("module.") for name in plain):
        plain = {name[len("module.") :]: one for name, one in plain.items()}
        candidates.append(plain)
    inner = [name for name, child in model.named_children() if not isinstance(child, Normalize)]
    if len(inner) == 1 and len(list(model.children())) > 1:  # it normalises, and then calls one network
        candidates += [{f"{inner[0]}.{name}": one for name, one in names.items()} for names in candidates]
    return max(candidates, key=lambda names: len(names.keys() & own.keys()))


def _may_be_missing(model: nn.Module, own: Iterable[str]) -> set[str]:
    """Return the names of tensors that a file may lack: those of normalisation, and counters of newer versions."""
    layers = [name for name, module in model.named_modules() if isinstance(module, Normalize)]
    normalization = {f"{name}.{key}".lstrip(".") for name in layers for key in ("mean", "std")}
    return normalization | {name for name in own if name.endswith("num_batches_tracked")}


def _same_kind(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and _form(one) == _form(other)


def _form(tensor: Tensor) -> tuple[bool, torch.layout, bool]:
    return tensor.is_floating_point(), tensor.layout, tensor.is_meta


def _is_classifier(own: Mapping[str, Tensor], given: Mapping[str, Tensor], names: list[str], num_classes: int) -> bool:
    """Return whether these tensors differ from those of the model in the number of classes alone.

    If a layer in the middle had another number of outputs, the next one would have another number of inputs.
    """
    layers = {name.rpartition(".")[0] for name in names}
    whole = {name for name, one in own.items() if name.rpartition(".")[0] in layers and one.shape[:1] == (num_classes,)}
    if whole != set(names):
        return False
    pairs = [(own[name], given[name]) for name in names]
    return len({theirs.shape[:1] for _, theirs in pairs}) <= 1 and all(
        ours.shape[:1] == (num_classes,)
        and ours.shape[1:] == theirs.shape[1:]
        and ours.dim() == theirs.dim()
        and _form(ours) == _form(theirs)
        for ours, theirs in pairs
    )


def _last_layer(model: nn.Module, own: Iterable[str], num_classes: int) -> set[str]:
    """Return the names of the tensors of the last layer, if it has one output for each class."""
    layers = [(name, module) for name, module in model.named_modules() if list(module.parameters(recurse=False))]
    if not layers or next(layers[-1][1].parameters(recurse=False)).shape[:1] != (num_classes,):
        return set()
    prefix = f"{layers[-1][0]}." if layers[-1][0] else ""
    return {name for name in own if name.startswith(prefix)}


def _counted(names: list[str], what: str) -> list[str]:
    verb = "is" if len(names) == 1 else "are"
    return [f"{counted(len(names), 'tensor')} {verb} {what} ({_few(names)})"] if names else []


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _kind(tensor: Tensor) -> str:
    shape = "x".join(map(str, tensor.shape)) if tensor.dim() else "a single number"
    plain = tensor.is_floating_point() and tensor.layout == torch.strided and not tensor.is_meta
    return shape if plain else f"{shape} ({tensor.dtype}, {'no values' if tensor.is_meta else tensor.layout})"
