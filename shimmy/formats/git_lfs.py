"""What git leaves in the place of a large file until `git lfs pull` fetches it. Knows how such a note begins."""

_NOTE_START = b"version https://git-lfs."  # https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
NOTE_START_BYTES = len(_NOTE_START)


def is_note(content: bytes) -> bool:
    """Whether a file that begins with `content`, NOTE_START_BYTES or more of it, is such a note."""
    return content.startswith(_NOTE_START)


def reason(file: str) -> str:
    """Why `file`, which is such a note, cannot be read."""
    return f"{file} is not there, only git's note of it: `git lfs pull` in its folder fetches it"
