"""JSON by a schema: beside free text, and what it costs those who stream at the same time."""

import asyncio
import json
import statistics
from collections.abc import Sequence

from tests.bench.client import Reply, ReplyFailed
from tests.bench.figures import MILLISECONDS, TIMES, TOKENS_PER_S, Figure, Figures
from tests.bench.session import Session

N_RECORDS, N_TOKENS = 4, 400  # no record is that long
FREE_TEMPERATURE = 1.5  # with 0.8 gemma-3-270m counts through the alphabet, and ends at z-z-z-z
PROMPT = "A record of a customer and what was ordered, as JSON:\n"
SCHEMA = {
    "type": "object",
    "properties": {
        "customer_name": {"type": "string", "maxLength": 30},
        "customer_number": {"type": "integer", "minimum": 1, "maximum": 99999},
        "delivery_address": {
            "type": "object",
            "properties": {
                "street": {"type": "string", "maxLength": 30},
                "city": {"type": "string", "maxLength": 20},
                "postal_code": {"type": "string", "pattern": "^[0-9]{5}$"},
            },
            "required": ["street", "city", "postal_code"],
            "additionalProperties": False,
        },
        "payment_method": {"enum": ["invoice", "credit card", "bank transfer"]},
        "is_returning_customer": {"type": "boolean"},
        "ordered_items": {
            "type": "array",
            "minItems": 2,
            "maxItems": 2,
            "items": {
                "type": "object",
                "properties": {
                    "description": {"type": "string", "maxLength": 20},
                    "quantity": {"type": "integer", "minimum": 1, "maximum": 99},
                },
                "required": ["description", "quantity"],
                "additionalProperties": False,
            },
        },
    },
    "required": [
        *("customer_name", "customer_number", "delivery_address", "payment_method", "is_returning_customer"),
        "ordered_items",
    ],
    "additionalProperties": False,
}
LARGE_NAMES = [f"measured_value_{number:03}" for number in range(200)]
LARGE_SCHEMA = {
    "type": "object",
    "properties": {name: {"type": "integer", "minimum": 0, "maximum": 9} for name in LARGE_NAMES},
    "required": LARGE_NAMES[:3],
    "additionalProperties": False,
}

N_BESIDE, N_BESIDE_TOKENS, N_RECORD_TOKENS = 3, 96, 64
N_BESIDE_TURNS = 5

STRUCTURED = (
    Figure("record", "a record by its JSON schema", TOKENS_PER_S, {"llama-server": 1.5}),
    Figure("record_share", "the same over as much text that is free", TIMES, {"shimmy": 1.5}),
)
LARGE = (
    Figure("first_record_s", "first token of a record of 200 properties", MILLISECONDS, {"llama-server": 1.0}),
    Figure("beside_share", "3 streams beside such records over beside free text", TIMES, {"shimmy": 0.95}),
)


async def structured(session: Session) -> Figures:
    """Records and free texts in turn. A record does not say the same things again and again, as a small model does that
    writes what is likely, which guesses make faster: so the free text is sampled with a high temperature."""
    # The first grammar of a model prepares its vocabulary; `large` tells what a first request takes.
    await session.complete(f"{session.words(1)}: {PROMPT}", 8, json_schema=SCHEMA, ignore_eos=False)
    records, texts = [], []
    for seed in range(N_RECORDS):
        prompt = f"{session.words(1)}: {PROMPT}"
        records.append(await session.complete(prompt, N_TOKENS, json_schema=SCHEMA, ignore_eos=False))
        try:
            json.loads(records[-1].text)
        except ValueError as exc:
            raise ReplyFailed(f"the record is no JSON: {records[-1].text!r}") from exc
        prompt = f"{session.words(1)}: {PROMPT}"
        texts.append(await session.complete(prompt, records[-1].n_tokens, temperature=FREE_TEMPERATURE, seed=seed))
    # What begins a record comes many tokens at once, so its first text does not tell when the prompt was read; that of
    # the others does, whose prompts are as long.
    prompt_s = statistics.median(reply.first_text_s for reply in texts)
    record, text = (_generated_per_s(replies, prompt_s) for replies in (records, texts))
    return {"record": record, "record_share": record / text}


def _generated_per_s(replies: Sequence[Reply], prompt_s: float) -> float:
    """Tokens per second once the prompts were read."""
    return statistics.mean(reply.n_tokens / (reply.ended_s - reply.asked_s - prompt_s) for reply in replies)


async def large(session: Session) -> Figures:
    first = await session.complete(f"{session.words(1)}: {PROMPT}", 2, json_schema=LARGE_SCHEMA, ignore_eos=False)
    fields = {"json_schema": LARGE_SCHEMA, "ignore_eos": False}
    # One takes a second or two, too little to average out what else the machine does.
    shares = []
    for turn in range(N_BESIDE_TURNS):
        if turn % 2:
            free, record = await _beside(session, {}), await _beside(session, fields)
        else:
            record, free = await _beside(session, fields), await _beside(session, {})
        shares.append(record / free)
    return {"first_record_s": first.first_text_s, "beside_share": statistics.median(shares)}


async def _beside(session: Session, fields: dict[str, object]) -> float:
    """Tokens per second of streams while another client asks with `fields` again and again."""
    over = asyncio.Event()

    async def ask_again() -> None:
        while not over.is_set():
            await session.complete(f"{session.words(1)}: {PROMPT}", N_RECORD_TOKENS, **fields)

    asking = asyncio.create_task(ask_again())
    asked = [session.complete(session.story(), N_BESIDE_TOKENS) for _ in range(N_BESIDE)]
    replies = await asyncio.gather(*asked)
    over.set()
    await asking
    elapsed_s = max(reply.ended_s for reply in replies) - min(reply.asked_s for reply in replies)
    return sum(reply.n_tokens for reply in replies) / elapsed_s
