"""A RobustBench entry (a model_info JSON file), made from an evaluation that includes AutoAttack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rmcla_fast import recipes
from rmcla_fast.attacks.attack_result import AttackResult
from rmcla_fast.epsilon import format_epsilon
from rmcla_fast.errors import UserError
from rmcla_fast.evaluation.run import Run

ARCHITECTURES = {
    "resnet18": "ResNet-18",
    "resnet18-silu": "ResNet-18",
    "preact-resnet18": "PreActResNet-18",
    "preact-resnet18-silu": "PreActResNet-18",
    "wrn-28-10": "WideResNet-28-10",
    "wrn-34-10": "WideResNet-34-10",
    "resnet50": "ResNet-50",
}
"""The names that RobustBench uses for our networks. They do not tell the activation."""


def entry(run: Run, results: Mapping[str, AttackResult], epsilon: float) -> dict[str, Any]:
    """Return a model_info document as in https://github.com/RobustBench/robustbench.

    Accuracies are strings in %, and eps is a string such as "8/255". `reported`, the accuracy that the authors claim,
    is the one under AutoAttack. Authors and venue are left empty for the person who submits the entry.

    Raises:
        UserError: `results` lacks the clean accuracy or the accuracy under AutoAttack.
    """
    missing = [name for name in ("clean", "autoattack") if name not in results]
    if missing:
        raise UserError(f"a RobustBench entry needs clean and autoattack; --attacks lacks {' and '.join(missing)}")
    try:
        recipe = recipes.get(run.recipe)
    except ValueError as error:
        raise UserError(str(error)) from error
    extra = run.record.facts.extra_images
    # For RobustBench, the images of a generator that was trained on the training images are no additional data.
    told = "additional_data is false if they were generated from the training images"
    also = f"; {extra:,} extra training images ({told})" if extra else ""
    autoattack = f"{results['autoattack'].accuracy:.2f}"
    return {
        "link": "https://arxiv.org/abs/1811.10716" if run.recipe.startswith("r-") else "",
        "name": f"{run.recipe} ({run.name})",
        "authors": "",
        "additional_data": extra > 0,
        "number_forward_passes": 1,
        "dataset": run.data,
        "venue": "",
        "architecture": ARCHITECTURES.get(run.network, run.network),
        "eps": format_epsilon(epsilon),
        "clean_acc": f"{results['clean'].accuracy:.2f}",
        "reported": autoattack,
        "autoattack_acc": autoattack,
        "unreliable": False,
        "footnote": f"trained with {format_epsilon(run.epsilon)} by rmcla_fast, {recipe.cost} forward passes per image "
        f"and epoch; {results['autoattack'].images} test images, AutoAttack by rmcla_fast{also}",
    }
