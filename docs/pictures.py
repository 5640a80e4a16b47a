"""Draw the pictures of docs/method.md from a network that is trained here: `python docs/pictures.py`.

It needs the extra [train], and takes some seconds. `--out FOLDER` writes the pictures somewhere else.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import rmcla_fast
from rmcla_fast import adversarial_example, joint_gradient, random_start, recipes, redistribute_labels
from rmcla_fast.training import TrainStep

RECIPE = recipes.get("r-mc-la").replace(epsilon=0.15)
EPOCHS = 6  # the network is still unsure then
DIGIT = 9  # the class of the image that is shown


def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """Train small-cnn on digits for some epochs; return it with the test images and labels."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    data = rmcla_fast.data.load("digits")
    model = rmcla_fast.models.create("small-cnn", data.num_classes, channels=1)
    step = TrainStep(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), RECIPE)
    for _ in range(EPOCHS):
        for index in torch.randperm(len(data.train.labels)).split(32):
            step(data.train.images[index], data.train.labels[index])
    return model.eval(), data.test.images, data.test.labels


def most_confused(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    """Return the place of the correctly classified image of DIGIT that is nearest to another class."""
    with torch.no_grad():
        logits = model(images / 255)
    own = logits.gather(1, labels[:, None]).squeeze(1)
    margin = own - logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return int(margin.masked_fill((labels != DIGIT) | (margin < 0), torch.inf).argmin())


def draw_update(path: Path, model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Draw what one update does to an image and to its label."""
    place = most_confused(model, images, labels)
    image, label = images[place : place + 1] / 255, labels[place : place + 1]
    rng = torch.tensor([0, 0])
    start = random_start(image, RECIPE.epsilon, rng=rng).requires_grad_()
    logits = model(start)
    joint = joint_gradient(logits.detach(), label)
    (gradient,) = torch.autograd.grad(logits, start, joint.grad_logits)
    example = adversarial_example(model, image, label, RECIPE, rng=rng)
    assert example.soft_labels is not None
    assert joint.soft_labels is not None
    torch.testing.assert_close(example.soft_labels, joint.soft_labels)
    with torch.no_grad():
        after = model(example.images).softmax(1)

    true, target = int(label), int(joint.targets)
    figure = Figure(figsize=(9.6, 4.8), layout="constrained")
    top, bottom = figure.subplots(2, 4, height_ratios=(1, 0.9))
    pixels: list[tuple[str, Tensor, dict[str, Any]]] = [
        (f"the image $x$, a {true}", image, {"cmap": "gray", "vmin": 0, "vmax": 1}),
        ("the random start $x_s$", start.detach(), {"cmap": "gray", "vmin": 0, "vmax": 1}),
        (f"first gradient: which\npixels lead to a {target}", gradient, _both_signs(gradient)),
        ("the moved image $x'$", example.images, {"cmap": "gray", "vmin": 0, "vmax": 1}),
    ]
    for axes, (title, shown, colours) in zip(top, pixels, strict=True):
        axes.imshow(shown[0, 0], **colours)
        axes.set_title(title, fontsize=10)
        axes.axis("off")
    bars: list[tuple[str, Tensor]] = [
        ("the one-hot label $y$", nn.functional.one_hot(label, 10)),
        ("second gradient:\n$v_k = -\\log p_k$ at $x_s$", -logits.detach().log_softmax(1)),
        ("the spread label $y'$", joint.soft_labels),
        ("the network's answer at $x'$", after),
    ]
    for axes, (title, heights) in zip(bottom, bars, strict=True):
        colours = ["tab:blue" if k == true else "tab:red" if k == target else "tab:gray" for k in range(10)]
        axes.bar(range(10), heights[0].tolist(), color=colours)
        axes.set_title(title, fontsize=10)
        axes.set_xticks(range(10))
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def _both_signs(values: Tensor) -> dict[str, Any]:
    """Return imshow's colours for values of both signs: 0 is white."""
    largest = float(values.abs().amax())
    return {"cmap": "coolwarm", "vmin": -largest, "vmax": largest}


def draw_labels(path: Path) -> None:
    """Draw the labels of one row of logits by each rule."""
    logits, label = torch.tensor([[6.0, 4.5, 3.0, 2.0, 0.5, -1.0]]), torch.tensor([0])
    rules: dict[str, dict[str, Any]] = {
        "main, beta 9": {},
        "main, beta 3": {"beta": 3.0},
        "main, beta 30": {"beta": 30.0},
        "main, top 3": {"top_k": 3},
        "sup, beta 9": {"label_scheme": "sup"},
    }
    figure = Figure(figsize=(9.6, 2.6), layout="constrained")
    for axes, (title, rule) in zip(figure.subplots(1, len(rules), sharey=True), rules.items(), strict=True):
        heights = redistribute_labels(logits, label, **rule)[0].tolist()
        axes.bar(range(6), heights, color=["tab:blue"] + 5 * ["tab:gray"])
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("class", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Draw both pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    folder = parser.parse_args().out
    draw_update(folder / "method-update.png", *trained())
    draw_labels(folder / "method-labels.png")


if __name__ == "__main__":
    main()
