"""A model's entry in the field names of RobustBench's model_info JSON files, from an evaluation with AutoAttack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rmcla_fast import recipes
from rmcla_fast.attacks.suite import AttackResult
from rmcla_fast.epsilon import format_epsilon
from rmcla_fast.errors import UserError
from rmcla_fast.evaluation.run import Run

ARCHITECTURES = {
    "preact-resnet18": "PreActResNet-18",
    "wrn-28-10": "WideResNet-28-10",
    "wrn-34-10": "WideResNet-34-10",
    "resnet50": "ResNet-50",
}
"""Networks as RobustBench's entries call them."""


def entry(run: Run, results: Mapping[str, AttackResult], epsilon: float) -> dict[str, Any]:
    """The JSON of https://github.com/RobustBench/robustbench, model_info: accuracies are strings in %, eps "8/255".

    `reported`, what the authors say, is AutoAttack's figure; authors and venue are for whoever hands the entry in.

    Raises:
        UserError: clean or AutoAttack accuracy is not known: an entry without them says nothing.
    """
    missing = [name for name in ("clean", "autoattack") if name not in results]
    if missing:
        raise UserError(f"a RobustBench entry needs clean and autoattack; --attacks lacks {' and '.join(missing)}")
    recipe = recipes.get(run.recipe)
    autoattack = f"{results['autoattack'].accuracy:.2f}"
    return {
        "link": "https://arxiv.org/abs/1811.10716" if run.recipe.startswith("r-") else "",
        "name": f"{run.recipe} ({run.name})",
        "authors": "",
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": run.data,
        "venue": "",
        "architecture": ARCHITECTURES.get(run.config["model"], run.config["model"]),
        "eps": format_epsilon(epsilon),
        "clean_acc": f"{results['clean'].accuracy:.2f}",
        "reported": autoattack,
        "autoattack_acc": autoattack,
        "unreliable": False,
        "footnote": f"trained with {format_epsilon(run.epsilon)} by rmcla_fast, {recipe.cost}F an image and epoch; "
        f"{results['autoattack'].images} test images, {results['autoattack'].library}",
    }
