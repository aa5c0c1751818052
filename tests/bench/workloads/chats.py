"""Conversations of one client: turn by turn, and what people do to them afterwards."""

import statistics

from tests.bench.client import Message
from tests.bench.figures import MILLISECONDS, SECONDS, Figure, Figures
from tests.bench.session import Session, assistant, system, user

N_TURNS, N_TOKENS, N_WORDS = 10, 32, 30
N_CHATS, N_EARLIER_TURNS = 3, 5

TURNS = (
    Figure("first_chat_s", "chat of 10 turns: first token, median", MILLISECONDS, {"llama-server": 1.0}),
    Figure("chat_s", "chat of 10 turns: all of it", SECONDS),
)
CHANGES = (
    Figure("first_regenerated_s", "an answer is generated again: first token", MILLISECONDS, {"llama-server": 1.0}),
    Figure("first_edited_s", "the third of 5 turns is edited: first token", MILLISECONDS, {"llama-server": 1.0}),
    Figure("first_returned_s", "back to the unedited chat: first token", MILLISECONDS, {"llama-server": 1.0}),
)


async def ten_turns(session: Session) -> Figures:
    firsts_s, _, elapsed_s = await _chat(session, N_TURNS)
    return {"first_chat_s": statistics.median(firsts_s), "chat_s": elapsed_s}


async def changes(session: Session) -> Figures:
    """The medians of some chats: what changes is one short moment of each."""
    chats = [await _changed_chat(session) for _ in range(N_CHATS)]
    return {figure.key: statistics.median(chat[figure.key] for chat in chats) for figure in CHANGES}


async def _changed_chat(session: Session) -> dict[str, float]:
    """After five turns the last answer is wanted again, then the third question is put otherwise, and then the first
    version goes on after all."""
    _, messages, _ = await _chat(session, N_EARLIER_TURNS)
    regenerated = await session.answer(messages[:-1], N_TOKENS, temperature=0.8, seed=2)
    third = 5  # after the system message, two questions and two answers
    edited = await session.answer([*messages[:third], _question(session)], N_TOKENS)
    returned = await session.answer([*messages, _question(session)], N_TOKENS)
    return {
        "first_regenerated_s": regenerated.first_text_s,
        "first_edited_s": edited.first_text_s,
        "first_returned_s": returned.first_text_s,
    }


async def _chat(session: Session, n_turns: int) -> tuple[list[float], list[Message], float]:
    """The times to each first token, all messages, and the time that the answers took together."""
    messages = [system(f"You are a helpful assistant. Your notes: {session.words(N_WORDS)}.")]
    firsts_s, elapsed_s = [], 0.0
    for _ in range(n_turns):
        messages.append(_question(session))
        reply = await session.answer(messages, N_TOKENS)
        messages.append(assistant(reply.text))
        firsts_s.append(reply.first_text_s)
        elapsed_s += reply.ended_s - reply.asked_s
    return firsts_s, messages, elapsed_s


def _question(session: Session) -> Message:
    return user(f"Write one sentence with these words: {session.words(N_WORDS)}.")
