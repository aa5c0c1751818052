"""What adapters can change in models of one architecture, by the names that transformers gives to its modules.

Knows the tables of the families; nothing of an adapter.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from shimmy.formats.convert.families.family import Row
from shimmy.formats.convert.families.table import FAMILIES
from shimmy.formats.convert.hyperparameters import MAX_LAYERS

# What llama.cpp only looks up, or multiplies with, without a thought for adapters.
_UNADAPTED = (
    *("position_embd.weight", "token_types.weight", "blk.#.shortconv.conv.weight", "blk.#.ssm_conv1d.weight"),
    *("per_layer_token_embd.weight", "per_layer_model_proj.weight"),
    *("altup_proj.weight", "altup_unembd_proj.weight", "blk.#.altup_router.weight"),
)
_NUMBER = re.compile(r"(?<=\.)(?:0|[1-9][0-9]{0,4})(?=\.)")


@dataclass(frozen=True, slots=True)
class Adaptable:
    """What adapters can change in models of one architecture, by transformers' names."""

    rows: Mapping[str, Row]
    modules: frozenset[str]  # all that the architecture has, adaptable or not
    prefixes: tuple[str, ...]
    ignored: tuple[str, ...]

    @classmethod
    def of(cls, architecture: str) -> "Adaptable":
        """Of all families that are one architecture for llama.cpp; no two of them mean different things by a name."""
        families = [family for family in FAMILIES if family.architecture == architecture]
        rows = {
            row.source: row
            for family in families
            for row in family.rows
            if len(row.shape) > 1 and row.target not in _UNADAPTED and not row.is_named_in_full and row.is_adaptable
            if row.runs is None and row.columns is None
        }
        modules = frozenset(row.source for family in families for row in family.rows)
        prefixes = dict.fromkeys(prefix for family in families for prefix in family.prefixes)
        ignored = tuple(name for family in families for name in family.ignored_prefixes)
        return cls(rows, modules, tuple(prefixes), ignored)

    def row(self, name: str) -> tuple[Row | None, tuple[int, int]]:
        """The row of the module `name`, or None; its layer, and its expert, 0 where it has none."""
        numbers = [int(number) for number in _NUMBER.findall(f"{self._plain(name)}.")]
        layer, expert, *_ = (*numbers, 0, 0)
        return (self.rows.get(self._pattern(name)) if layer < MAX_LAYERS else None), (layer, expert)

    def has(self, name: str) -> bool:
        """Whether models of the architecture have the module `name`, be it one that no adapter can change."""
        return self._pattern(name) in self.modules or self.ignores(name)

    def ignores(self, name: str) -> bool:
        """Whether it is of a part of the model that the engine does not have, such as Gemma's eyes."""
        return self._plain(name).startswith(self.ignored)

    def _pattern(self, name: str) -> str:
        """As the rows have it, with signs for its numbers."""
        signs = iter("#@")
        return _NUMBER.sub(lambda _: next(signs, "?"), self._plain(name) + ".").removesuffix(".")

    def _plain(self, name: str) -> str:
        return name.removeprefix(next((prefix for prefix in self.prefixes if name.startswith(prefix)), ""))
