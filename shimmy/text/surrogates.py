"""Half of a surrogate pair: JSON can write one without the other half, and no tokenizer and no UTF-8 has it."""

_STEP = 1 << 16  # characters of one call of C code, which holds Python's lock


def has_lone_surrogate(text: str) -> bool:
    """Whether `text` has no UTF-8 form; takes a fraction of a millisecond at a time from other threads."""
    if text.isascii():
        return False
    try:
        for start in range(0, len(text), _STEP):
            text[start : start + _STEP].encode()
    except UnicodeEncodeError:
        return True
    return False
