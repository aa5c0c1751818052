"""Reads a reply whole and in pieces, for tests of families: where it is cut must not matter."""

from shimmy.messages.reply import ReplyFormat
from shimmy.text.reply_parser import Reply, ReplyParser


def replies(text: str, form: ReplyFormat, sizes: tuple[int, ...] = (1, 2, 5)) -> list[Reply]:
    """What is read of a text in pieces of so many characters, and of the whole text last."""
    found = []
    for size in (*sizes, len(text)):
        parser, reply = ReplyParser(form), Reply()
        for start in range(0, len(text), size):
            reply.add(parser.feed(text[start : start + size]))
        reply.add(parser.flush())
        found.append(reply)
    return found


def read(text: str, form: ReplyFormat) -> tuple[list[tuple[str, str]], str]:
    """The names and arguments of the calls, and the content: the same in pieces of one, two and three characters."""
    results = [
        ([(call.name, call.arguments) for call in reply.calls], reply.content)
        for reply in replies(text, form, (1, 2, 3))
    ]
    assert all(result == results[0] for result in results)
    return results[0]
