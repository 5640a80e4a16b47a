"""The signs of gradient masking, which makes a model look more robust than it is, and a line about them for each model.

The signs are those of Athalye et al. (ICML 2018) and Carlini et al. ("On evaluating adversarial robustness", 2019): one
step fools more images than many steps do, more iterations do not help, no epsilon is large enough, and AutoAttack fools
images that PGD does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rmcla_fast.attacks.parts import GRADIENT_ATTACKS

# In points of accuracy:
FGSM_MARGIN = 1.0
USEFUL_GAIN = 0.5
VISIBLE_DROP = 2.0
AUTOATTACK_GAP = 5.0
ABOVE_CHANCE = 10.0
LUCKY_IMAGES = 2  # up to so many images that only FGSM fools are not a sign
LARGE_EPSILON = 0.5  # at which every pixel can become grey


def signs(
    accuracies: Mapping[str, float],
    iterations: Sequence[float] = (),
    at_large_epsilon: float | None = None,
    chance: float = 0.0,
    images: int = 1000,
) -> list[str]:
    """Return each sign of gradient masking that the figures show, in words.

    Args:
        accuracies: in %, by attack name: clean, fgsm, ce20, ..., autoattack, as far as they are known.
        iterations: accuracies in % after 1, 2, ... steps of one PGD attack.
        at_large_epsilon: accuracy in % under PGD with epsilon LARGE_EPSILON, where no model can do better than chance.
        chance: the accuracy in % of a model that always answers the most frequent class.
        images: how many images the accuracies are measured on. On few images, one or two that FGSM happens to fool
            are no sign.
    """
    found = []
    pgd = {name: accuracies[name] for name in GRADIENT_ATTACKS if name.startswith(("ce", "cw")) and name in accuracies}
    ce = [value for name, value in pgd.items() if name.startswith("ce")]
    margin = max(FGSM_MARGIN, 100 * LUCKY_IMAGES / images)
    if "fgsm" in accuracies and ce and accuracies["fgsm"] < min(ce) - margin - 1e-9:
        found.append(f"FGSM is stronger than PGD ({accuracies['fgsm']:.1f} against {min(ce):.1f})")
    never_enough = at_large_epsilon is not None and at_large_epsilon > chance + ABOVE_CHANCE
    # With a tiny epsilon more iterations find nothing either. That is no sign unless one step already lowered the
    # accuracy, or no epsilon does.
    stuck = len(iterations) > 1 and iterations[0] - iterations[-1] < USEFUL_GAIN
    if stuck and (never_enough or accuracies.get("clean", 0.0) - iterations[0] >= VISIBLE_DROP):
        found.append(
            f"{len(iterations)} iterations find no more than 1 ({iterations[-1]:.1f} against {iterations[0]:.1f})"
        )
    if never_enough:
        found.append(
            f"PGD leaves {at_large_epsilon:.1f} even with epsilon {LARGE_EPSILON:g}, where only chance should be left"
        )
    if "autoattack" in accuracies and pgd and accuracies["autoattack"] < min(pgd.values()) - AUTOATTACK_GAP:
        found.append(f"AutoAttack is far below PGD ({accuracies['autoattack']:.1f} against {min(pgd.values()):.1f})")
    return found


def verdict(
    accuracies: Mapping[str, float],
    iterations: Sequence[float] = (),
    at_large_epsilon: float | None = None,
    chance: float = 0.0,
    images: int = 1000,
) -> str:
    """Return one line with the signs, or that there are none and whether AutoAttack confirms it.

    The arguments are those of `signs`.
    """
    if accuracies.get("clean", 100.0) <= min(1.5 * chance, chance + ABOVE_CHANCE / 2):
        return f"is no better than chance ({accuracies['clean']:.1f} on clean images): there is nothing to attack"
    found = signs(accuracies, iterations, at_large_epsilon, chance, images)
    if found:
        return "looks more robust than it is: " + "; ".join(found)
    if "autoattack" in accuracies:
        return "no sign of gradient masking"
    return "no sign of gradient masking, but AutoAttack has not been run"
