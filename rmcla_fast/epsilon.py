"""Conversion of a perturbation bound from and to the usual notation: 8/255, or 0.031 on images in [0, 1]."""

from __future__ import annotations

import math

from rmcla_fast.errors import UserError


def parse_epsilon(text: str | float) -> float:
    """Return the bound, in the unit of images in [0, 1], from "8/255", "0.031" or a number.

    Raises:
        UserError: the text is not a number, or not in [0, 1]. For a plain number above 1 the message says how to write
            a number of 255 levels.
    """
    numerator, slash, denominator = str(text).strip().partition("/")
    try:
        value = float(numerator) / float(denominator) if slash else float(numerator)
    except (ValueError, ZeroDivisionError):
        raise UserError(f"epsilon must be a fraction such as 8/255 or a number such as 0.031; got {text!r}") from None
    if not slash and value > 1 and math.isfinite(value):
        raise UserError(
            f"epsilon is for images in [0, 1] and {text} is above 1; for {text} of 255 levels write {numerator}/255 "
            f"or {value / 255:.6f}"
        )
    if not 0 <= value <= 1:  # also true for NaN
        raise UserError(f"epsilon must lie in [0, 1]; got {text}")
    return value


def format_epsilon(value: float) -> str:
    """Return "8/255" if the value is a whole number of 255 levels, else the number itself, as text."""
    levels = value * 255
    if value > 0 and abs(levels - round(levels)) < 1e-6 * max(levels, 1):
        return f"{round(levels)}/255"
    return f"{value:.6g}"
