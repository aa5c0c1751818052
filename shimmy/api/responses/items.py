"""The items of OpenAI's Responses: what an input may hold, and how it is read.

An item is a plain JSON object in the form in which the API lists it, with an id. Unknown kinds of items and parts are
refused by name. What a chat template sees of items is in `conversation`.
"""

import json
import os
import re
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from shimmy.api.request_fields.field_kinds import (
    Json,
    Kind,
    ListOf,
    Matching,
    OneOf,
    Record,
    Text,
    read_array,
    read_object,
    read_text,
    refuse,
    text,
)
from shimmy.api.request_fields.tool_kinds import stand_in
from shimmy.errors import BadRequest, NotFound

Item = dict[str, Any]  # what it holds has been checked
FindItem = Callable[[str], Item | None]

N_ITEMS_MAX = 1 << 14  # of an input
N_PARTS_MAX = 1 << 12  # of an item


_ID_CHARACTERS = 128
_ID_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "reasoning": "rs",
}
# What other servers have run, or keep for themselves.
_HOSTED_ITEM = re.compile(
    r"(?:web_search|web_fetch|file_search|computer|code_interpreter|image_generation|local_shell|shell|apply_patch|mcp"
    r"|tool_search)_(?:call|call_output|output)"
    r"|mcp_list_tools|mcp_approval_request|mcp_approval_response|additional_tools|configuration_update|compaction"
    r"|compaction_summary|compaction_trigger|context_compaction|program|program_output|ghost_snapshot"
)


@dataclass(frozen=True, slots=True)
class ItemId:
    """An id as a client sends it back."""

    def read(self, value: object, path: str) -> str:
        if len(item_id := read_text(value, path)) > _ID_CHARACTERS:
            refuse(path, f"at most {_ID_CHARACTERS} characters", str(len(item_id)))
        return item_id

    def schema(self) -> Json:
        return {"type": "string", "maxLength": _ID_CHARACTERS}


@dataclass(frozen=True, slots=True)
class ByType:
    """An object whose `type` says what else is in it; `untyped` tells the type of one that does not say."""

    records: Mapping[str, Record]
    noun: str  # of several such objects
    untyped: Callable[[Json], str] | None = None
    may_be_untyped: tuple[str, ...] = ()

    def read(self, value: object, path: str) -> Item:
        source = read_object(value, path)
        given = source.get("type")
        kind = self.untyped(source) if given is None and self.untyped else read_text(given, f"{path}.type")
        if kind not in self.records:
            known = ", ".join(self.records)
            shown = json.dumps(kind[:60])[:60]
            message = f"{path}.type: {self.noun} of type {shown} are not supported here, but {known}"
            raise BadRequest(message, param=f"{path}.type")
        return {"type": kind, **self.records[kind].read(source, path)}

    def schema(self) -> Json:
        return {"anyOf": [self._typed(kind, record).schema() for kind, record in self.records.items()]}

    def _typed(self, kind: str, record: Record) -> Record:
        needed = {} if kind in self.may_be_untyped else {"type": "a string"}
        return Record({"type": OneOf((kind,)), **record.fields}, {**needed, **record.required})


@dataclass(frozen=True, slots=True)
class ItemContent:
    """A text, or an array of parts, which are read to their texts."""

    part: ByType

    def read(self, value: object, path: str) -> str | list[str]:
        if isinstance(value, str):
            return read_text(value, path)
        parts = read_array(value, path, "a string or an array of parts")
        if len(parts) > N_PARTS_MAX:
            refuse(path, f"at most {N_PARTS_MAX} parts", str(len(parts)))
        read = [self.part.read(part, f"{path}[{index}]") for index, part in enumerate(parts)]
        return [part.get("text") or part.get("refusal", "") for part in read]

    def schema(self) -> Json:
        return {"anyOf": [text.schema(), {"type": "array", "items": self.part.schema(), "maxItems": N_PARTS_MAX}]}


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool has answered: a text, or an array of parts, where a line of text stands for what is none."""

    part: ByType

    def read(self, value: object, path: str) -> str | list[str]:
        if isinstance(value, str):
            return read_text(value, path)
        parts = read_array(value, path, "a string or an array of parts")
        return [self._part(part, f"{path}[{index}]") for index, part in enumerate(parts)]

    def schema(self) -> Json:
        kind = {"type": "string", "not": {"enum": list(self.part.records)}}
        other: Json = {"type": "object", "properties": {"type": kind}, "required": ["type"]}
        return {"anyOf": [text.schema(), {"type": "array", "items": {"anyOf": [self.part.schema(), other]}}]}

    def _part(self, value: object, path: str) -> str:
        kind = read_object(value, path).get("type")
        if isinstance(kind, str) and kind not in self.part.records:
            return stand_in(read_text(kind, f"{path}.type"))
        return str(self.part.read(value, path)["text"])


@dataclass(frozen=True, slots=True)
class AnyItem:
    """An item that this server knows, or one about a tool that another server ran: that stays as it is."""

    def read(self, value: object, path: str) -> Item:
        source = read_object(value, path)
        if not is_hosted(source):
            return _whole(_item.read(source, path))
        known = _HOSTED.read(source, path)
        return {name: item for name, item in source.items() if name != "id" or "id" in known}

    def schema(self) -> Json:
        return {"anyOf": [_item.schema(), _HOSTED.schema()]}


def is_hosted(item: Mapping[str, object]) -> bool:
    kind = item.get("type")
    return isinstance(kind, str) and _HOSTED_ITEM.fullmatch(kind) is not None


@dataclass(frozen=True, slots=True)
class EncryptedReasoning:
    """Reasoning as `encrypted_content` has it, which a client hands back unread. It is no secret here.

    That of another server cannot be read, and says nothing.
    """

    def read(self, value: object, path: str) -> str:
        try:
            return a2b_base64(read_text(value, path), strict_mode=True).decode()
        except (Base64Error, ValueError):
            return ""

    def schema(self) -> Json:
        return text.schema()


def sealed(reasoning: str) -> str:
    """What EncryptedReasoning reads."""
    return b2a_base64(reasoning.encode(), newline=False).decode()


@dataclass(frozen=True, slots=True)
class Input:
    """A text, which stands for a message of the user, or an array of items. They are read to items without new ids."""

    def read(self, value: object, path: str) -> tuple[Item, ...]:
        if isinstance(value, str):
            return (_whole({"type": "message", "role": "user", "content": read_text(value, path)}),)
        items = read_array(value, path, "a string or an array of items")
        if len(items) > N_ITEMS_MAX:
            refuse(path, f"at most {N_ITEMS_MAX} items", str(len(items)))
        return tuple([_any_item.read(item, f"{path}[{index}]") for index, item in enumerate(items)])

    def schema(self) -> Json:
        return {"anyOf": [text.schema(), {"type": "array", "items": _any_item.schema(), "maxItems": N_ITEMS_MAX}]}


def _parts(*kinds: str) -> ByType:
    return ByType({kind: Record({"text": text}, required={"text": "a string"}) for kind in kinds}, "parts")


_refusal = Record({"refusal": text}, required={"refusal": "a string"})
_text_part = _parts("input_text", "output_text", "text")
_said_part = replace(_text_part, records={**_text_part.records, "refusal": _refusal})
_call_id: Kind[str] = Text("the id of a call", may_be_empty=False)
_id = {"id": ItemId()}
# Agents also send outputs without a call: with a name, and with no call id or an unknown one.
_call_output = Record(
    {**_id, "call_id": text, "name": text, "namespace": text, "output": ToolResult(_text_part)},
    required={"output": "a string or an array of parts"},
)
_item = ByType(
    {
        "message": Record(
            {**_id, "role": OneOf(("user", "assistant", "system", "developer")), "content": ItemContent(_said_part)},
            required={"role": "the role of a message", "content": "a string or an array of parts"},
        ),
        "function_call": Record(
            {**_id, "call_id": _call_id, "name": text, "namespace": text, "arguments": text},
            required={"call_id": "the id of a call", "name": "a string"},
        ),
        "function_call_output": _call_output,
        "custom_tool_call": Record(
            {**_id, "call_id": _call_id, "name": text, "namespace": text, "input": text},
            required={"call_id": "the id of a call", "name": "a string", "input": "a string"},
        ),
        "custom_tool_call_output": _call_output,
        "reasoning": Record(
            {
                **_id,
                "summary": ListOf(_parts("summary_text"), at_most=N_PARTS_MAX),
                "content": ListOf(_parts("reasoning_text"), at_most=N_PARTS_MAX),
                "encrypted_content": EncryptedReasoning(),
            }
        ),
        "item_reference": Record(_id, required={"id": "the id of an item"}),
    },
    "items",
    untyped=lambda source: "item_reference" if "id" in source and "role" not in source else "message",
    may_be_untyped=("message", "item_reference"),
)


_any_item = AnyItem()
_HOSTED = Record(
    {**_id, "type": Matching(_HOSTED_ITEM, "the type of an item")}, required={"type": "the type of an item"}
)


def _whole(item: Item) -> Item:
    """An item as the API lists it, but for its id where it has none."""
    match item["type"]:
        case "message" if item["role"] == "assistant":
            content = [{"type": "output_text", "text": said, "annotations": []} for said in _several(item["content"])]
            return item | {"content": content, "status": "completed"}
        case "message":
            return item | {"content": _input_parts(_several(item["content"])), "status": "completed"}
        case "function_call_output" | "custom_tool_call_output" if not isinstance(item["output"], str):
            return item | {"output": _input_parts(item["output"]), "status": "completed"}
        case "reasoning":
            unsealed = item.pop("encrypted_content", "")
            content = [*item.get("content", ())]
            if unsealed and not content:
                content = [{"type": "reasoning_text", "text": unsealed}]
            return item | {"summary": [*item.get("summary", ())], "content": content, "status": "completed"}
    return item | {"status": "completed"}


def _several(content: str | list[str]) -> list[str]:
    return [content] if isinstance(content, str) else content


def _input_parts(texts: Iterable[str]) -> list[Item]:
    return [{"type": "input_text", "text": said} for said in texts]


def new_id(prefix: str) -> str:
    """An id that cannot be guessed."""
    return f"{prefix}_{os.urandom(24).hex()}"


def identified(items: Iterable[Item], find_item: FindItem) -> tuple[list[Item], list[str]]:
    """`items` with ids, and what references stand for in their places; and the ids that were made.

    Raises NotFound for a reference to an item that `find_item` does not know.
    """
    whole, made_ids = [], []
    for item in items:
        if item["type"] == "item_reference":
            whole.append(_found(item["id"], find_item))
        elif "id" in item:
            whole.append(item)
        else:
            made_ids.append(new_id(_ID_PREFIXES.get(item["type"], "item")))
            whole.append({"id": made_ids[-1], **item})
    return whole, made_ids


def _found(item_id: str, find_item: FindItem) -> Item:
    item = find_item(item_id)
    if item is None:
        raise NotFound(
            f"Item with id '{item_id}' not found. Items are not persisted when `store` is set to false, and this "
            "server forgets old responses. Send the item itself instead.",
            param="input",
        )
    return item
