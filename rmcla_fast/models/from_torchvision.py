"""Networks and weights of torchvision."""

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
    in_torch_cache,
    not_in_cache,
    unknown,
)
from rmcla_fast.models.weights import read_weights

TRAINING_ONLY = ("aux1", "aux2", "AuxLogits")  # the classifiers of googlenet and inception_v3 that only training uses


def _make(torchvision: ModuleType, name: str, images: Images) -> Made:
    weights = _weights(torchvision, name)
    if images.channels != 3:
        raise Refused(f"torchvision:{name} takes images with 3 channels; those of the data set have {images.channels}")
    network = torchvision.models.get_model(name, weights=None, num_classes=images.num_classes)
    if getattr(network, "aux_logits", False):
        network.aux_logits = False
        for part in TRAINING_ONLY:
            if hasattr(network, part):
                setattr(network, part, None)
    if hasattr(network, "transform_input"):  # torchvision sets it with its own weights, which need it
        network.transform_input = True
    transforms = weights.transforms()
    return Made(network, getattr(transforms, "mean", HALVES), getattr(transforms, "std", HALVES))


def _weights(torchvision: ModuleType, name: str) -> Any:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise unknown(f"torchvision:{name}", "torchvision for the classification of images", known)
    return torchvision.models.get_model_weights(name).DEFAULT


def _pretrained(torchvision: ModuleType, name: str, images: Images) -> Pretrained:
    path = in_torch_cache(_weights(torchvision, name).url)
    if not path.is_file():
        command = f"import torchvision; torchvision.models.get_model('{name}', weights='DEFAULT')"
        raise not_in_cache(f"torchvision:{name}", f'python -c "{command}"')
    tensors = read_weights(path)
    kept = {key: value for key, value in tensors.items() if key.partition(".")[0] not in TRAINING_ONLY}
    return Pretrained(kept, [path])


TORCHVISION = Library("torchvision", "0.24", _make, _pretrained)
