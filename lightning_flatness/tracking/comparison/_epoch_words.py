"""Epochs in words."""

from collections.abc import Iterable

_MOST_SPANS = 6


def in_epochs(epochs: Iterable[float]) -> str:
    """Name epochs, runs of successive ones as one; of many runs, the first few.

    Example:
        >>> in_epochs([3.0]), in_epochs([0.0, 1.0, 2.0, 5.0, 5.0])
        ('in epoch 3', 'in epochs 0–2, 5')
    """
    numbers = sorted({int(epoch) for epoch in epochs})
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    texts = [str(first) if first == last else f"{first}–{last}" for first, last in spans[:_MOST_SPANS]]
    left = sum(last - first + 1 for first, last in spans[_MOST_SPANS:])
    more = f" and {left} more" if left else ""
    return f"in epoch{'s' if len(numbers) > 1 else ''} {', '.join(texts)}{more}"
