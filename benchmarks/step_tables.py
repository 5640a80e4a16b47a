"""What `bench_train_step.py` prints: the time of every rival, and the ratios of the rivals beside their targets."""

from __future__ import annotations

import statistics
from typing import Any

import machine  # noqa: F401  imports this checkout's package

from rmcla_fast import recipes

TARGETS = {
    "r-mc-la step / its passes": ("at most", 1.03),
    "r-mc-la step / standard step": ("at most", 1.75),
    "public step, fp32 / r-mc-la step": ("at least", 1.28),
    "public step / r-mc-la step": ("at least", 1.5),
    "lean step compiled / r-mc-la step": ("at least", 0.9),
    "FastAT N-FGSM loop / n-fgsm step, averaged": ("at least", 1.25),
    "r-mc-la memory / standard memory": ("at most", 1.10),
}


def ratios_of(
    names: list[str], samples: dict[str, list[tuple[float, float]]], memory: dict[str, float]
) -> dict[str, Any]:
    pairs = [(f"{name} step / its passes", f"{name} step", f"{name} passes") for name in names]
    pairs += [(f"{name} step / standard step", f"{name} step", "standard step") for name in names if name != "standard"]
    for rival in (
        "public step, fp32",
        "public step",
        "public step compiled",
        "public step, DataLoader",
        "lean step compiled",
        "r-mc-la unfused",
    ):
        pairs.append((f"{rival} / r-mc-la step", rival, "r-mc-la step"))
        if rival.startswith("public"):  # the public step is the method of r-mc-la+
            pairs.append((f"{rival} / r-mc-la+ step", rival, "r-mc-la+ step"))
    pairs.append(("FastAT N-FGSM loop / n-fgsm step, averaged", "FastAT N-FGSM loop", "n-fgsm step, averaged"))
    pairs.append(("torchattacks PGD7 / madry-pgd7-2 step", "torchattacks PGD7", "madry-pgd7-2 step"))
    pairs.append(("torchattacks PGD7 / r-mc-la step", "torchattacks PGD7", "r-mc-la step"))
    found = {}
    for title, above, below in pairs:
        if above in samples and below in samples:
            both = list(zip(samples[above], samples[below], strict=True))
            found[title] = {
                "of_fastest": min(samples[above])[0] / min(samples[below])[0],
                "median_of_rounds": statistics.median(a[0] / b[0] for a, b in both),
                "of_least_processor_time": min(a[1] for a, _ in both) / min(b[1] for _, b in both),
            }
    if memory:
        for name in ("r-mc-la", "public step, fp32"):
            found[f"{name} memory / standard memory"] = {"of_fastest": memory[name] / memory["standard"]}
    return found


def print_tables(report: dict[str, Any]) -> None:
    context, rate = report["context"], report["matrix_flops_per_second"]
    options = context["options"]
    print(f"\n{context['machine']}, {context['threads']} threads, torch {context['torch']}, "
          f"commit {context['commit']}, load {context['load_before'][0]:.1f}")  # fmt: skip
    if rate:
        print(f"an 8192 x 8192 matrix product reaches {rate / 1e12:.0f} TFLOP/s in {options['precision']}")
    columns = ("fastest", "median", "processor", "images/s", "TFLOP/s")
    print(f"\n{'milliseconds a step':32}" + "".join(f"{column:>11}" for column in columns))
    for name, seconds in report["seconds"].items():
        wall, processor = seconds["wall"], seconds["processor"]
        median = statistics.median(wall)
        recipe, _, kind = name.rpartition(" ")
        flops = ""
        if kind in ("step", "passes") and recipe in recipes.names():
            flops = f"{recipes.get(recipe).cost * report['forward_flops'] / median / 1e12:.2f}"
        print(f"{name:32}{min(wall) * 1e3:11.3f}{median * 1e3:11.3f}{min(processor) * 1e3:11.3f}"
              f"{options['batch'] / median:11.0f}{flops:>11}")  # fmt: skip
    print(f"\n{'ratio':46} {'fastest':>8} {'median':>8} {'processor':>10}   target")
    for name, ratio in report["ratios"].items():
        both = [f"{ratio[key]:.3f}" if key in ratio else "" for key in ("of_fastest", "median_of_rounds")]
        processor = f"{ratio['of_least_processor_time']:.3f}" if "of_least_processor_time" in ratio else ""
        target = "{} {}".format(*TARGETS[name]) if name in TARGETS else ""
        print(f"{name:46} {both[0]:>8} {both[1]:>8} {processor:>10}   {target}")
