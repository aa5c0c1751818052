"""`cp`: gives a model one more name. It takes no room, and stays until `rm` removes it."""

from shimmy.catalog.alias_file import AliasFile, is_name
from shimmy.catalog.assign_names import composed
from shimmy.catalog.catalog import Registry
from shimmy.commands.console import CommandCall, CommandFailed
from shimmy.commands.models import find_models
from shimmy.commands.terminal.screen_text import safe_line
from shimmy.errors import BadRequest

_PATTERN = set("*?[]")


def copy(call: CommandCall) -> int:
    aliases = AliasFile(call.config.alias_file)
    registry = Registry(kept=aliases)
    registry.publish(find_models(call.config))
    alias = composed(call.options.alias_name.strip().lower())
    if not is_name(alias) or _PATTERN & set(alias):
        raise BadRequest("an alias has 1 to 256 printable characters, and none of *?[]")
    model = registry.resolve(call.options.name)
    if registry.catalog.find(alias) is not None:
        raise BadRequest(f"`{alias}` is the name of a model already")
    try:
        aliases.put(alias, model.name)
    except (OSError, ValueError) as exc:
        raise CommandFailed(f"the alias cannot be kept: {getattr(exc, 'strerror', None) or exc}") from exc
    print(f"{safe_line(alias)} is {safe_line(model.name)}")
    return 0
