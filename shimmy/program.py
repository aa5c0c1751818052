"""The program itself as a command. Light: workers, which start it once more, import it too."""

import sys


def own_program() -> list[str]:
    """How this program is started once more."""
    return [sys.executable] if getattr(sys, "frozen", False) else [sys.executable, "-m", "shimmy"]
