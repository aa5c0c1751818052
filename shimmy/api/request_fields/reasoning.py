"""How much a model shall think, as callers write it, to what its chat template is given; and how much it did."""

from shimmy.api.request_fields.field_kinds import Json, JsonObject, OneOf
from shimmy.messages.event import Piece
from shimmy.messages.reply import Delta

EFFORT = OneOf(("none", "minimal", "low", "medium", "high", "xhigh", "max"))
VERBOSITY = OneOf(("low", "medium", "high"))
NO_EFFORT = EFFORT.texts[0]
TEMPLATE_ARGUMENTS = "chat_template_kwargs"


def n_reasoning(delta: Delta, piece: Piece) -> int:
    """How many tokens of `piece`, which said `delta`, were reasoning: where pieces were joined, its share by length."""
    if not delta.reasoning:
        return 0
    share = min(1.0, len(delta.reasoning) / max(1, len(piece.text)))
    return max(1, round(piece.n_tokens * share))


def template_arguments(effort: str | None, own: Json | None = None, *, verbosity: str | None = None) -> str:
    """Variables for the template as JSON text; the caller's `own` count more than those that come of the effort.

    `enable_thinking` is what the templates of most models that can do without reasoning ask for.
    """
    arguments: Json = {}
    if effort is not None:
        arguments = {"enable_thinking": False} if effort == NO_EFFORT else {"reasoning_effort": effort}
    if verbosity is not None:
        arguments["verbosity"] = verbosity  # few templates look at it
    return JsonObject().read(arguments | (own or {}), TEMPLATE_ARGUMENTS) if arguments or own else "{}"
