"""Markdown in a terminal: what a person sees of it, piece by piece, and what it costs whatever a model writes."""

import io
import random
import re

import pytest

from shimmy.commands.terminal.style import Style
from shimmy.commands.terminal_chat.inline_marks import LONGEST
from shimmy.commands.terminal_chat.markdown_stream import MarkdownStream

ITEM = re.compile("\x1b\\[([0-9]+)m|([^\x1b])")
LETTERS = {"1": "b", "2": "d", "3": "i", "36": "c"}
MARKS = (
    *("*", "**", "***", "`", "```", "~~~", "[", "]", "](", ")"),
    *("_", "__", "\\", "#", "# ", "|", "> ", "\n", "\n", " ", "a", "b ", "中", ".", "2"),
)


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def style(monkeypatch: pytest.MonkeyPatch) -> Style:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Style(Screen())


def characters(text: str, style: Style, n_at_once: int) -> list[tuple[str, str]]:
    """Each character that is shown of `text`, which comes in pieces; with letters for bold, italic, code."""
    stream = MarkdownStream(style)
    pieces = [text[at : at + n_at_once] for at in range(0, len(text), n_at_once)]
    shown, active = [], ""
    for item in ITEM.finditer("".join([*map(stream.feed, pieces), stream.end()])):
        if item[1]:
            active = "" if item[1] == "0" else "".join(sorted({*active, LETTERS[item[1]]}))
        else:
            shown.append((item[2], active))
    return shown


def shown(text: str, style: Style, n_at_once: int = 1 << 30) -> str:
    """What is shown, as `<b:bold>`."""
    parts, last = [], ""
    for character, active in characters(text, style, n_at_once):
        if active != last:
            parts.append(">" if last else "")
            parts.append(f"<{active}:" if active else "")
        last = active
        parts.append(character)
    return "".join(parts) + (">" if last else "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# One\n\n## Two\ntext", "<b:One>\n\n<b:Two>\ntext"),
        ("# A **title**", "<b:A title>"),
        ("#tag, C#\n####### seven\n#", "#tag, C#\n####### seven\n#"),
        ("a **bold** word, *one* and ***both***", "a <b:bold> word, <i:one> and <bi:both>"),
        ("**all *of* it**, *it **too***", "<b:all ><bi:of><b: it>, <i:it ><bi:too>"),
        ("`x = [1]` and ``a ` b`` and ``` `` ```", "<c:x = [1]> and <c:a ` b> and <c:``>"),
        ("**`-v`**: more", "<bc:-v>: more"),
        ("中文**加粗**中文", "中文<b:加粗>中文"),
        ("see [the **page**](https://a.b/c_d) now", "see the <b:page> (https://a.b/c_d) now"),
        ("- [ ] open [1] x[0](y) [no", "- [ ] open [1] x[0](y) [no"),
        ("* one\n* *two*\n  - **three**\n1. `four`", "* one\n* <i:two>\n  - <b:three>\n1. <c:four>"),
        ("> *so*\n| a | **b** |\n|---|---|\n***\n---", "> <i:so>\n| a | **b** |\n|---|---|\n***\n---"),
        ("2*3*4, a**b**c, 5 * 6 * 7, snake_case_name", "2*3*4, a**b**c, 5 * 6 * 7, snake_case_name"),
        ("__bold__ and _it_, ___both___, _a_b_", "<b:bold> and <i:it>, <bi:both>, <i:a_b>"),
        ("_größe_ größe_und_maß __Öl__ß", "<i:größe> größe_und_maß __Öl__ß"),
        ("**Über**straße, *un*möglich, Über**straße**", "<b:Über>straße, <i:un>möglich, Über**straße**"),
        ("“*so*” —*ja*— *„nein“* **(a)** (_b_) **a.**b", "“<i:so>” —<i:ja>— <i:„nein“> <b:(a)> (<i:b>) **a.**b"),
        ("_ a_ *\u00a0b* a_\u2019b_ **kw, x**2 and (a)*b*c", "_ a_ *\u00a0b* a_\u2019b_ **kw, x**2 and (a)*b*c"),
        (r"snake\_case \_no\_", "snake_case _no_"),
        ("f(*args, **kwargs), *.py or *.txt, char *s, *t", "f(*args, **kwargs), *.py or *.txt, char *s, *t"),
        (r"\*not\* \`this\` \[x^2\] C:\dir \\", r"*not* `this` \[x^2\] C:\dir \\"),
        ("**open\n`open\n[open](\nend **", "**open\n`open\n[open](\nend **"),
        ("**" + "x" * 76 + "** **" + "x" * 77 + "**", "<b:" + "x" * 76 + "> **" + "x" * 77 + "**"),
        ("Run:\n```sh\nls *.py\n```\nor", "Run:\n\n<c:ls *.py>\n\nor"),
        ("Run:\n\n~~~\n```\n\n~~~\n\nor", "Run:\n\n<c:```>\n\n\nor"),
        ("1. one\n   ```py\n   if x:\n       y\n ```  \n2. two", "1. one\n\n<c:if x:>\n<c:    y>\n\n2. two"),
        ("````\n```\n````", "<c:```>\n"),
        ("```\nnever **closed**\n# no", "<c:never **closed**>\n<c:# no>"),
        ("```python app.py\nx\n```", "<d:python app.py>\n<c:x>\n"),
        ("~~~ c++\nx\n~~~\n~~~ a/b.c\ny", "<c:x>\n\n<d:a/b.c>\n<c:y>"),
        ("```one line```", "<c:one line>"),
        ("", ""),
    ],
)  # fmt: skip
def test_what_a_person_sees(text: str, expected: str, style: Style) -> None:
    assert shown(text, style) == expected


def test_how_the_text_is_cut_does_not_matter(style: Style) -> None:
    generator = random.Random(7)
    for _ in range(300):
        parts = [generator.choice((*MARKS, "x" * generator.choice((20, 78, 79, 80)))) for _ in range(30)]
        text = "".join(parts)
        whole = characters(text, style, len(text))
        assert characters(text, style, 1) == whole, text
        assert characters(text, style, 7) == whole, text


def test_only_marks_are_taken_away(style: Style) -> None:
    generator = random.Random(8)
    for _ in range(300):
        marks = [mark for mark in MARKS if mark not in ("```", "~~~")]  # what stands behind these may name a language
        text = "".join(generator.choice(marks) for _ in range(40))
        for mark in "ab中":
            assert sum(character == mark for character, _ in characters(text, style, 5)) == text.count(mark), text


def test_nothing_waits_for_more_than_its_meaning(style: Style) -> None:
    stream = MarkdownStream(style)
    assert stream.feed("plain") == "plain"
    assert stream.feed(" *") == " "
    assert stream.feed("it* an") == "\x1b[3mit\x1b[0m an"
    assert stream.feed("d\n# ") == "d\n"
    assert stream.feed("Tit") == "\x1b[1mTit\x1b[0m"
    assert stream.feed("le\n```py") == "\x1b[1mle\x1b[0m\n"
    assert stream.feed("\nx") == "\n\x1b[36mx\x1b[0m"
    assert stream.feed(" = **") == "\x1b[36m = **\x1b[0m"
    assert stream.feed("\n``") == "\n"
    assert stream.feed("`\nby") == "\nby"
    assert stream.end() == ""


@pytest.mark.parametrize(
    "part",
    [
        *("a", "*", " *a", " **a", "*a **b ", " *a *b* c*", "`", " `a", "[", "[a](b"),
        *("\\", "```\n", "~", "# ", "|", "> ", " ", "_", " _a", " __a", "_a __b ", " _a _b_ c_"),
    ],
)
def test_a_hostile_text_costs_what_its_length_does(part: str, style: Style) -> None:
    """Time that grew with the square of the length would be an hour, and the test's time limit end it."""
    text = (part * 100_000)[:100_000]
    for n_at_once, length in ((1000, len(text)), (1, 5_000)):
        stream = MarkdownStream(style)
        for at in range(0, length, n_at_once):
            stream.feed(text[at : at + n_at_once])
        assert len(ITEM.sub(r"\2", stream.end())) <= LONGEST
