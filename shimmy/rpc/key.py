"""The key that machines share: a file with a line that nobody can guess. Knows no channel."""

from pathlib import Path

MIN_BYTES = 16
NO_KEY = b"for this machine alone"  # of those who have none, and do not leave their machine
HOW_TO_MAKE_ONE = "`head -c 32 /dev/urandom | base64 > FILE` makes one; copy it to each machine"


def read_key(path: Path | None) -> bytes:
    """The key in the file, without the space around it; NO_KEY for None. Raises ValueError with what a person has to
    do."""
    if path is None:
        return NO_KEY
    try:
        key = path.read_bytes().strip()
    except OSError as exc:
        raise ValueError(f"the key `{path}` cannot be read: {exc.strerror}; {HOW_TO_MAKE_ONE}") from exc
    if len(key) < MIN_BYTES:
        raise ValueError(
            f"the key in `{path}` has {len(key)} bytes, and {MIN_BYTES} are the least that cannot be guessed; "
            f"{HOW_TO_MAKE_ONE}"
        )
    return key
