"""`rm`: deletes a model's files, after asking. A server that serves it notices and unloads it."""

import sys

from shimmy.catalog.alias_file import AliasFile
from shimmy.catalog.assign_names import composed
from shimmy.catalog.catalog import Registry, Rejected, shown
from shimmy.catalog.removal import Removal, removal
from shimmy.commands.console import CommandCall, CommandFailed, is_agreed
from shimmy.commands.models import find_models
from shimmy.commands.terminal import amounts
from shimmy.commands.terminal.screen_text import safe_line
from shimmy.errors import NotFound

_MAX_SHOWN = 20


def remove(call: CommandCall) -> int:
    """Of an alias, only the alias goes."""
    aliases = AliasFile(call.config.alias_file)
    registry = Registry()
    registry.publish(find_models(call.config))
    for name in call.options.names:
        if registry.catalog.find(name) is None and _drop(aliases, name):
            print(f"removed the alias {safe_line(name)}")
            continue
        entry = registry.entry(name)
        if isinstance(entry, Rejected):
            raise NotFound(f"`{entry.name}` is not a model ({entry.reason}): delete `{shown(entry.path)}` yourself")
        what = removal(entry, call.config.roots, registry.catalog.models)
        size = amounts.size(what.size_bytes)
        if not call.options.yes and not _is_wanted(entry.name, what, size):
            print("nothing was removed", file=sys.stderr)
            return 1
        what.carry_out()
        print(f"removed {safe_line(entry.name)}, {size}")
    return 0


def _drop(aliases: AliasFile, name: str) -> bool:
    """Whether an alias went. A file of aliases that is broken keeps nobody from removing a model."""
    try:
        return aliases.drop(composed(name.strip().lower()))
    except ValueError as exc:
        print(f"shimmy: all aliases stay as they are: {safe_line(str(exc))}", file=sys.stderr)
        return False
    except OSError as exc:
        raise CommandFailed(f"the alias cannot be removed: {exc.strerror}") from exc


def _is_wanted(name: str, what: Removal, size: str) -> bool:
    """Ask the person. Raises CommandFailed where there is none."""
    lines = [f"  {shown(path)}" for path in what.files[:_MAX_SHOWN]]
    if len(what.files) > _MAX_SHOWN:
        lines.append(f"  and {len(what.files) - _MAX_SHOWN} more")
    if_nobody = f"`{name}` is not removed, as there is no terminal to ask: add --yes"
    return is_agreed(f"Remove {name}, {size}?", if_nobody, lines)
