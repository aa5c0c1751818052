"""JSON by a schema against the same number of tokens without one, and against llama-server with the same schema.

python -m tests.bench.structured [--model smollm2] [--rounds 5]

Each round asks each server for a record by its schema, and for as many tokens of free text. The last figure is what a
schema of 200 properties costs those who stream beside it: the speed of three streams while a fourth client asks for
such a record again and again, against their speed while it asks for free text.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from tests.bench.client import Reply, stream
from tests.bench.machine import n_cores
from tests.bench.peers import PEERS, running
from tools.demo_models import DEMO_MODELS, fetch_model

N_TOKENS = 400  # no record is that long
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


Value = TypeVar("Value")


def rates(port: int, model: str) -> tuple[float, float]:
    """Tokens per second by the schema, and of as many free ones."""

    async def both() -> tuple[float, float]:
        guided = await stream(port, model, PROMPT, N_TOKENS, json_schema=SCHEMA)
        json.loads(guided.text)
        free = await stream(port, model, PROMPT, guided.n_tokens, ignore_eos=True)
        return _rate(guided), _rate(free)

    return asyncio.run(both())


def _rate(reply: Reply) -> float:
    return reply.n_tokens / (reply.ended_s - reply.asked_s)


def beside(port: int, model: str, **fields: object) -> float:
    """Tokens per second of three streams while a fourth client asks with `fields` again and again."""

    async def all_of_them() -> float:
        over = asyncio.Event()

        async def ask_again() -> None:
            while not over.is_set():
                await stream(port, model, PROMPT, 64, **fields)

        asking = asyncio.create_task(ask_again())
        started_s = time.perf_counter()
        streams = [stream(port, model, f"{number} {PROMPT}", 128, ignore_eos=True) for number in range(3)]
        replies = await asyncio.gather(*streams)
        elapsed_s = time.perf_counter() - started_s
        over.set()
        await asking
        return sum(reply.n_tokens for reply in replies) / elapsed_s

    return asyncio.run(all_of_them())


def first_schema_s(port: int, model: str) -> float:
    """Seconds until the first text of a record by the large schema, beyond those of free text with the same prompt."""

    async def ask(**fields: object) -> float:
        return (await stream(port, model, PROMPT, 2, **fields)).first_text_s

    async def difference() -> float:
        await ask()
        return await ask(json_schema=LARGE_SCHEMA) - await ask()

    return asyncio.run(difference())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.structured", description=str(__doc__).splitlines()[0])
    parser.add_argument("--model", choices=DEMO_MODELS, default="smollm2")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model = fetch_model(options.model)
    measured: dict[str, list[tuple[float, float]]] = {}
    beside_schema, schema_s = [], []
    for _ in range(options.rounds):
        for name in ("shimmy", "llama-server"):
            with running(PEERS[name], model, n_cores()) as server:
                rates(server.port, model.stem)  # loads the model, and what is made once for each
                measured.setdefault(name, []).append(rates(server.port, model.stem))
                if name == "shimmy":
                    schema_s.append(first_schema_s(server.port, model.stem))
                    free = beside(server.port, model.stem, ignore_eos=True)
                    beside_schema.append(beside(server.port, model.stem, json_schema=LARGE_SCHEMA) / free)
    for name, pairs in measured.items():
        print(f"{name}: {_median(pairs, lambda pair: pair[0])} tokens/s by the schema", end="; ")
        print(f"free text {_median(pairs, lambda pair: pair[1])}; by the schema / free", end=" ")
        print(_median(pairs, lambda pair: pair[0] / pair[1]))
    both = list(zip(measured["shimmy"], measured["llama-server"], strict=True))
    print(f"by the schema, shimmy / llama-server: {_median(both, lambda pair: pair[0][0] / pair[1][0])}")
    print(f"until the first text of a record of 200 properties: {1000 * statistics.median(schema_s):.0f} ms more")
    print(f"three streams beside such records / beside free text: {_median(beside_schema, float)}")
    return 0


def _median(values: Sequence[Value], figure: Callable[[Value], float]) -> str:
    numbers = [figure(value) for value in values]
    return f"{statistics.median(numbers):.2f} ({min(numbers):.2f}-{max(numbers):.2f})"


if __name__ == "__main__":
    sys.exit(main())
