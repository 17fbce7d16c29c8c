"""Radii, and other positive numbers, as parts of log keys."""

from decimal import Decimal


def radius_label(radius: float) -> str:
    """A radius as a part of a key.

    Args:
        radius: a length in data units, or another positive number.

    Returns:
        Label of digits and ``_``, 255ths where the number is one of them and no short decimal.

    Example:
        >>> radius_label(8 / 255), radius_label(0.5)
        ('8_255', '0_5')
    """
    pixels = round(radius * 255)
    is_decimal = abs(radius - round(radius, 3)) < 1e-9
    is_pixels = not is_decimal and pixels > 0 and abs(radius * 255 - pixels) < 1e-6
    number = f"{pixels}_255" if is_pixels else format(Decimal(f"{radius:.4g}"), "f")
    if number.endswith(".255") and radius > 1:
        number += "0"  # 8.255 is not 8 / 255
    return "".join(digit if digit.isdigit() else "_" for digit in number)


def label_radius(label: str) -> float | None:
    """Radius behind a label, to as many digits as it has; None where it is none.

    Args:
        label: of :func:`radius_label`.

    Returns:
        The radius, or None.

    Example:
        >>> label_radius("8_255") == 8 / 255, label_radius("0_5"), label_radius("pgd")
        (True, 0.5, None)
    """
    whole, _, rest = label.partition("_")
    if not whole.isdecimal() or (rest and not rest.isdecimal()):
        return None
    if rest == "255" and whole != "0":
        return int(whole) / 255
    return float(f"{whole}.{rest or 0}")


def radius_text(label: str) -> str:
    """A label of a radius as one writes the radius.

    Args:
        label: of :func:`radius_label`.

    Returns:
        A fraction or a decimal number.

    Example:
        >>> radius_text("8_255"), radius_text("0_5"), radius_text("2")
        ('8/255', '0.5', '2')
    """
    whole, _, rest = label.partition("_")
    if rest == "255" and whole != "0":
        return f"{whole}/255"
    return f"{whole}.{rest}" if rest else whole
