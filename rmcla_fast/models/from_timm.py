"""Networks and weights of timm."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from rmcla_fast.models.library import (
    HALVES,
    Images,
    Library,
    Made,
    Pretrained,
    Refused,
    in_hugging_face,
    in_torch_cache,
    not_in_cache,
    unknown,
)
from rmcla_fast.models.weights import read_weights


def _config(timm: ModuleType, name: str) -> Any:
    """Return timm's configuration of a network and its weights; None if it has none."""
    if not timm.is_model(name):
        raise unknown(f"timm:{name}", "timm", timm.list_models())
    try:
        return timm.models.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise Refused(f"timm has no weights {name!r}; {_tags(timm, name)}") from error


def _arguments(config: Any, images: Images) -> dict[str, Any]:
    """Return the channels and, for a network that is made for images of one size, the size."""
    fixed = images.size is not None and getattr(config, "fixed_input_size", False)
    return {"in_chans": images.channels, **({"img_size": images.size} if fixed else {})}


def _make(timm: ModuleType, name: str, images: Images) -> Made:
    config = _config(timm, name)
    network = timm.create_model(name, num_classes=images.num_classes, **_arguments(config, images))
    return Made(network, getattr(config, "mean", HALVES), getattr(config, "std", HALVES))


def _pretrained(timm: ModuleType, name: str, images: Images) -> Pretrained:
    """Let timm itself adapt the weights: names of older versions, the channels, and the size of position embeddings."""
    config = _config(timm, name)
    if config is None or not (config.hf_hub_id or config.url):
        raise Refused(f"timm has no weights for timm:{name}; {_tags(timm, name)}")
    file = config.hf_hub_filename or "pytorch_model.bin"
    # timm loads a file of safetensors in its place, if there is one.
    files = [file.replace("pytorch_model.bin", "model.safetensors"), file.replace(".bin", ".safetensors"), file]
    found = [in_hugging_face(config.hf_hub_id, file) for file in files] if config.hf_hub_id else []
    found += [in_torch_cache(config.url)] if config.url else []
    path = next((path for path in found if path is not None and path.is_file()), None)
    if path is None:
        command = f"import timm; timm.create_model('{name}', pretrained=True)"
        raise not_in_cache(f"timm:{name}", f'python -c "{command}"')
    own_format = path.suffix == ".npz"
    source = {"file": str(path), "custom_load": True} if own_format else {"state_dict": read_weights(path)}
    arguments = _arguments(config, images)
    network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=source, **arguments)
    return Pretrained(network.state_dict(), [path])


def _tags(timm: ModuleType, name: str) -> str:
    known = timm.list_models(f"{name.partition('.')[0]}.*", pretrained=True)
    return f"it has those of {', '.join(f'timm:{one}' for one in known[:5])}" if known else "give a file"


TIMM = Library("timm", "1.0", _make, _pretrained)
