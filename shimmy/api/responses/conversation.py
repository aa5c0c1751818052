"""The items of OpenAI's Responses as the turns of a chat, which a template sees.

Knows items in the form in which the API lists them; nothing of how they are read.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from shimmy.api.request_fields.tool_kinds import model_name, text_arguments
from shimmy.api.responses.items import Item, is_hosted
from shimmy.errors import BadRequest
from shimmy.messages.request import Message, ToolCall

INSTRUCTING = ("system", "developer")
THINKING, SPEAKING, CALLING = range(3)  # the order in which the assistant does it


def conversation(items: Iterable[Item], instructions: str = "") -> tuple[Message, ...]:
    """The turns of a chat. What the assistant did in a row, thinking, speaking and calling, is one of them.

    Raises BadRequest for the output of a call that is not among the items, unless it has a name.
    """
    turns = [_Turn("system", [instructions])] if instructions else []
    names: dict[str, str] = {}  # of the functions called, by the ids of their calls
    for item in items:
        match item["type"]:
            case "message" if item["role"] == "assistant":
                _assistant(turns, up_to=THINKING).texts.append(_joined(item["content"]))
            case "message":
                _other(turns, item["role"]).texts.append(_joined(item["content"]))
            case "function_call" | "custom_tool_call":
                names[item["call_id"]] = name = model_name(item["name"], item.get("namespace"))
                arguments = text_arguments(item["input"]) if "input" in item else item.get("arguments", "")
                _assistant(turns, up_to=CALLING).calls.append(ToolCall(item["call_id"], name, arguments))
            case "function_call_output" | "custom_tool_call_output":
                turns.append(_answer(item, names))
            case "reasoning" if thoughts := item["content"] or item["summary"]:
                _assistant(turns, up_to=THINKING).thoughts.append(_joined(thoughts))
            case _ if said := _hosted_text(item):
                turns.append(_Turn("user", [said]))
    return tuple([turn.message() for turn in turns])


@dataclass(slots=True)
class _Turn:
    """A message as it grows. Lists, since a body may have so many items that copying for each would take too long."""

    role: str
    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    name: str | None = None
    call_id: str | None = None

    @property
    def stage(self) -> int:
        return CALLING if self.calls else SPEAKING if self.texts else THINKING

    def message(self) -> Message:
        return Message(
            self.role,
            "\n\n".join(self.texts) if self.texts else None,
            self.name,
            tuple(self.calls),
            self.call_id,
            "\n".join(self.thoughts) if self.thoughts else None,
        )


def _assistant(turns: list[_Turn], *, up_to: int) -> _Turn:
    """The assistant's current turn where its stage is at most `up_to`, otherwise a new one."""
    if not turns or turns[-1].role != "assistant" or turns[-1].stage > up_to:
        turns.append(_Turn("assistant"))
    return turns[-1]


def _other(turns: list[_Turn], role: str) -> _Turn:
    # Many templates take one system message, as the first: instructions at the head become one.
    if not (role in INSTRUCTING and len(turns) == 1 and turns[0].role in INSTRUCTING):
        turns.append(_Turn(role))
    return turns[-1]


def _hosted_text(item: Item) -> str:
    """The text output of a tool that another server ran; empty where there is none."""
    output = item.get("output")
    if isinstance(output, list):
        streams = [part.get(name) for part in output if isinstance(part, dict) for name in ("text", "stdout", "stderr")]
        output = "\n".join([text for text in streams if isinstance(text, str) and text])
    if not isinstance(output, str) or not output or not is_hosted(item):
        return ""
    name = item.get("name")
    return f"[{name if isinstance(name, str) else item['type']}]\n{output}"


def _answer(item: Item, names: Mapping[str, str]) -> _Turn:
    call_id, output = item.get("call_id"), item["output"]
    if call_id is None or (call_id not in names and item.get("name")):
        name = ".".join(filter(None, (item.get("namespace"), item.get("name")))) or "tool"
        return _Turn("user", [f"[{name}]\n{output if isinstance(output, str) else _joined(output)}"])
    if call_id not in names:
        message = f"No tool call found for function call output with call_id {call_id[:80] or '(empty)'}."
        raise BadRequest(message, param="input")
    content = output if isinstance(output, str) else _joined(output)
    return _Turn("tool", [content], name=names[call_id], call_id=call_id)


def _joined(parts: Sequence[Item]) -> str:
    # One line for each part, as in chats.
    return "\n".join([part["text"] for part in parts])
