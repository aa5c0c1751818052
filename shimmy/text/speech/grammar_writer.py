"""What a family's file may ask of the grammar that it writes its part of. Knows no engine: `tool_grammar` has it."""

from typing import Protocol


class GrammarWriter(Protocol):
    """Rules in the Lark dialect of llguidance, and texts that may have control tokens in them."""

    def rule(self, name: str, text: str) -> None:
        """Add a rule, or a terminal where the name is in upper case. The same rule may be added again."""

    def text(self, text: str) -> str:
        """A text as part of a rule; empty for no text."""

    def until(self, text: str, name: str) -> str:
        """Any text up to the first `text`, which is included; `name` is for a rule that this may need."""
