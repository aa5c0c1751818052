"""A number with its noun, in English. Knows no noun that is not regular."""


def plural(number: int, noun: str) -> str:
    """`1 model`, `2,048 models`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
