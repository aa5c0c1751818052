"""Where the golden file of quantised layouts lies; `layouts.py`, which records it, needs an environment of its own."""

from pathlib import Path

PATH = Path(__file__).parent / "layouts.json.xz"
