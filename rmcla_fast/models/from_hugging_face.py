"""Networks and weights of transformers, from a folder or from the cache of Hugging Face."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from rmcla_fast.models.library import (
    HALVES,
    Images,
    Library,
    Made,
    Pretrained,
    Refused,
    in_hugging_face,
    is_path,
    not_in_cache,
    unknown,
)
from rmcla_fast.text import shell_word


def _make(transformers: ModuleType, name: str, images: Images) -> Made:
    folder = _folder(name)
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    config.num_labels = images.num_classes
    if hasattr(config, "num_channels"):
        config.num_channels = images.channels
    if images.size is not None and hasattr(config, "image_size"):
        height, width = images.size
        config.image_size = height if height == width else [height, width]
    network = transformers.AutoModelForImageClassification.from_config(config, trust_remote_code=False)
    if images.channels != getattr(config, "num_channels", 3):
        raise Refused(f"hf:{name} takes images with 3 channels; those of the data set have {images.channels}")
    return Made(network.float(), *_statistics(folder))


def _folder(name: str) -> Path:
    """Return the folder of a model, which may be in the cache.

    Given a folder, transformers has no reason to use the network. For a name in the cache it would do so to convert
    weights of an old format, even with `local_files_only`.
    """
    config = in_hugging_face(name, "config.json")
    if config is None:
        raise _unknown(name)
    return config.parent


def _unknown(name: str) -> Refused:
    folder = Path(os.path.expanduser(name))
    if folder.is_dir():
        return Refused(f"the folder {folder} of hf:{name} has no config.json, so it is no model of transformers")
    if is_path(name):
        return Refused(f"there is no folder {folder} for hf:{name}")
    cache = Path(importlib.import_module("huggingface_hub.constants").HF_HUB_CACHE)
    known = [path.name[len("models--") :].replace("--", "/") for path in cache.glob("models--*")]
    error = unknown(f"hf:{name}", "transformers in your cache, and no folder,", known)
    return Refused(f"{error}; load one into the cache with: hf download {shell_word(name)}")


def _statistics(folder: Path) -> tuple[Sequence[float], Sequence[float]]:
    """Return the mean and std of the model's image processor, for images in [0, 1]."""
    if not (folder / "preprocessor_config.json").is_file():
        return HALVES, HALVES
    base = importlib.import_module("transformers.image_processing_base").ImageProcessingMixin
    said, _ = base.get_image_processor_dict(folder, local_files_only=True)
    # It multiplies bytes by a factor that is usually 1/255, and then normalises.
    scale = 255 * float(said.get("rescale_factor", 1 / 255)) if said.get("do_rescale", True) else 255.0
    mean, std = (said.get("image_mean") or HALVES, said.get("image_std") or HALVES)
    if not said.get("do_normalize", True):
        mean, std = (0.0,) * len(mean), (1.0,) * len(std)
    return [float(value) / scale for value in mean], [float(value) / scale for value in std]


def _pretrained(transformers: ModuleType, name: str, images: Images) -> Pretrained:
    """Let transformers itself read the weights, which it may have to rename. What it made anew is left out."""
    folder = _folder(name)
    names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
    first = next((folder / file for file in names if (folder / file).is_file()), None)
    if first is None:
        if folder == Path(os.path.expanduser(name)):
            raise Refused(f"the folder {folder} of hf:{name} has no model.safetensors")
        raise not_in_cache(f"hf:{name}", f"hf download {shell_word(name)}")
    files = sorted(folder.glob(f"{first.name.partition('.')[0]}*{first.name.split('.')[1]}*"))
    with _no_progress_bar(transformers):
        network, found = transformers.AutoModelForImageClassification.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    new = set(found["missing_keys"])
    return Pretrained({key: value for key, value in network.state_dict().items() if key not in new}, files)


@contextmanager
def _no_progress_bar(transformers: ModuleType) -> Iterator[None]:
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


# The extra also installs timm and torchvision, and transformers does not work beside a torchvision for another torch.
HUGGING_FACE = Library(
    "transformers",
    "4.48",
    _make,
    _pretrained,
    "pip install 'transformers>=4.48' safetensors (or 'rmcla-fast[models]', which has timm and torchvision, too)",
)
