"""Replies of Cohere's Command: answers between marks. Its calls are JSON with a number, and read off the template.

Knows the marks; no tokens.
"""

_ANSWERS = (
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),  # R7B, A
    ("<|START_TEXT|>", "<|END_TEXT|>"),  # North
)


def answer_marks(template: str) -> tuple[str, str] | None:
    """What a template writes in front of an answer and behind it; None for other families."""
    return next((marks for marks in _ANSWERS if marks[0] in template and marks[1] in template), None)
