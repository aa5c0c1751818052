"""Replies that mostly repeat what stands in the prompt: where guessing ahead pays."""

import json
import statistics

from tests.bench.figures import TIMES, TOKENS_PER_S, Figure, Figures
from tests.bench.session import Session, user
from tests.bench.workloads.streams import ordinary_replies

N_TOKENS = 128
CODE = '''\
def monthly_report(orders, currency):
    """Add up what customers have ordered, month by month."""
    totals = {}
    for order in orders:
        month = order.date.strftime("%Y-%m")
        amount = order.quantity * order.unit_price
        if order.is_returned:
            amount = -amount
        totals[month] = totals.get(month, 0) + amount
    lines = []
    for month in sorted(totals):
        lines.append(f"{month}: {totals[month]:.2f} {currency}")
    return "\\n".join(lines)
'''
ARTICLE = (
    'The harbor was rebuilt after the storm of 1953. "We had lost every boat but one," the mayor said later, "and '
    'nobody thought that the town would stay." The new wall is four meters higher than the old one. "It is not '
    'pretty," an engineer told the paper, "but it will stand for a hundred years." Since then the water has come three '
    "times, and each time it has stopped a hand's breadth below the edge."
)
RECORD = json.dumps(
    {
        "order": 48213,
        "customer": {"name": "Ada Winter", "city": "Bremen", "postal_code": "28195"},
        "items": [
            {"article": "garden chair", "quantity": 4, "price": 39.5},
            {"article": "oak table", "quantity": 1, "price": 420.0},
            {"article": "cushion, blue", "quantity": 4, "price": 12.25},
        ],
        "paid": True,
    },
    indent=2,
)
# What is asked, and what is to be copied.
TASKS = {
    "copy_code": ("Rewrite this code with `amount` renamed to `value`.", f"```python\n{CODE}```"),
    "copy_quotes": ("Sum up this article and quote every person in it word by word.", ARTICLE),
    "copy_json": ("Repeat this JSON with the order number changed to 50000.", f"```json\n{RECORD}\n```"),
}

COPYING = (
    Figure("copy_code", "rewrite code with one change", TOKENS_PER_S, {"llama-server": 1.5}),
    Figure("copy_quotes", "summarise with quotes", TOKENS_PER_S, {"llama-server": 1.5}),
    Figure("copy_json", "repeat JSON", TOKENS_PER_S, {"llama-server": 1.5}),
    Figure("copy_gain", "copying over ordinary text", TIMES, {"shimmy": 1.5}),
)


async def copying(session: Session) -> Figures:
    """Tokens per second once the reply has begun."""
    rates = {}
    for key, (request, text) in TASKS.items():
        reply = await session.answer([user(f"Job {session.words(1)}. {request}\n\n{text}")], N_TOKENS)
        rates[key] = reply.decode_tokens_per_s
    ordinary = await ordinary_replies(session)
    gain = statistics.mean(rates.values()) / statistics.mean(reply.decode_tokens_per_s for reply in ordinary)
    return {**rates, "copy_gain": gain}
