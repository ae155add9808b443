"""Numbers as programs and servers write them."""

from __future__ import annotations


def number(value: object) -> float | None:
    """`1.5`, `1e-3`, `1_000`, `1,000`, `nan`, `inf`, as text or as a number -> float; None where it is none.

    Underscores and commas are left out wherever they stand, as they divide digits and mean nothing.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value.replace(",", "").replace("_", "") if isinstance(value, str) else value)
    except (ValueError, OverflowError):  # no number; an integer beyond what a float can hold
        return None
