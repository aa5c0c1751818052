"""Grammars of texts that stand in JSON: what they take between quotes is what they take without them."""

import json

import llguidance
import pytest

from shimmy.engine.constrain.gbnf.lark import to_lark
from shimmy.engine.constrain.lark_in_json import NotInJson, lark_in_json

TOKENIZER = llguidance.LLTokenizer("byte")
# Of Codex's tool `apply_patch`.
PATCH = r"""start: begin_patch hunk+ end_patch
begin_patch: "*** Begin Patch" LF
end_patch: "*** End Patch" LF?

hunk: add_hunk | delete_hunk | update_hunk
add_hunk: "*** Add File: " filename LF add_line+
delete_hunk: "*** Delete File: " filename LF
update_hunk: "*** Update File: " filename LF change_move? change?

filename: /(.+)/
add_line: "+" /(.*)/ LF -> line

change_move: "*** Move to: " filename LF
change: (change_context | change_line)+ eof_line?
change_context: ("@@" | "@@ " /(.+)/) LF
change_line: ("+" | "-" | " ") /(.*)/ LF
eof_line: "*** End of File" LF

%import common.LF
"""
PATCHED = (
    '*** Begin Patch\n*** Add File: a "b".py\n+print("x\\n")\n+\n*** Update File: c\n*** Move to: d\n@@ def f\n-a\t\\\n'
    "+é😀/\n*** End of File\n*** Delete File: \\e\n*** End Patch"
)
ARITHMETIC = """
?start: sum
?sum: product
    | sum "+" product   -> add   // left to right
    | sum "-" product
?product: atom | product ("*" | "/") atom
?atom: NUMBER | "-" atom | NAME | "(" sum ")"
%import common.CNAME -> NAME
%import common (NUMBER, WS_INLINE)
%ignore WS_INLINE
"""


def takes(lark: str, text: str) -> bool:
    nested = to_lark(lark_in_json(lark))
    matcher = llguidance.LLMatcher(TOKENIZER, f'start: "\\"" %lark {{\n{nested}\n}} "\\""', log_level=0)
    assert not matcher.is_error(), f"{matcher.get_error()}\n{nested}"
    written = json.dumps(text, ensure_ascii=False).encode()
    n_taken = matcher.try_consume_tokens(list(written))
    return n_taken == len(written) and bool(matcher.is_accepting() or matcher.is_stopped())


@pytest.mark.parametrize(
    ("lark", "good", "bad"),
    [
        (PATCH, [PATCHED, PATCHED + "\n"], [PATCHED[1:], PATCHED.replace("+print", "print"), "*** Begin Patch\n", ""]),
        (ARITHMETIC, ["1", "1 + 2.5e3*(a_1 - -3)", " (x) "], ["1 +", "(1", "a\n+ b", "1 2"]),
        ('start: /[a-z]+\\/"[^\\n]*/', ['ab/"x\\y'], ['ab/"x\n', "ab"]),
        ('start: "A\\"b"i | /(?i)select [k-n]/', ['a"B', "SeLeCT L"], ['a"c', "select o"]),
        ('start: x (" " x)*\nx: /\\d{2,3}|[^\\w\\s]/ // c\n', ["12 345 %"], ["1", "é", "1234"]),
        ("start: /(?s:.)+/", ['a\n"\\b', "é\t"], [""]),
        ("start: /./", ["a", '"', "\\", "\t", "😀"], ["\n", "ab"]),
        ("start: ESCAPED_STRING\n%import common.ESCAPED_STRING", ['"a\\"b"', '""'], ['"a', 'a"']),
        ('start: (/a/ | "\\x41" | "\\\\x41")+', ["aA\\x41"], ["b"]),
        ('start: "a".."f" ~ 2..3 | "x"{2,} | ["y"] "z"', ["ab", "fff", "xx", "xxx", "z", "yz"],
         ["a", "ag", "abcd", "x"]),
        ('start: A B?\nA.2: /[^a]/\nB: "\\t" | "\\u00e9"', ["b", "b\t", "bé"], ["a", "\tx"]),
        ('start: | "a"', ["", "a"], ["b"]),
        ('start: _inner\n_inner: (\n  "a"\n  | "b"\n)', ["a", "b"], ["c"]),
    ],
)  # fmt: skip
def test_a_grammar_takes_the_same_texts_between_quotes(lark: str, good: list[str], bad: list[str]) -> None:
    for text in good:
        assert takes(lark, text), text
    for text in bad:
        assert not takes(lark, text), text


@pytest.mark.parametrize(
    ("lark", "words"),
    [
        ('a: "x"', "no rule `start`"),
        ("start: x", "no rule `x`"),
        ("start: %json {}", "`%json`"),
        ("start: <think>", "`<think>"),
        ('start: "a', '`"a`'),
        ("start: (", "missing"),
        ("start", "too early"),
        ("start: /(?=a)/", "assert"),
        ("start: /[a/", "the expression"),
        ("%import python.X\nstart: X", "common"),
        ("%import common.NOTHING\nstart: NOTHING", "common.NOTHING"),
        ('start: "b".."a"', "range"),
        ("start: " + "(" * 5000, "deep"),
    ],
)  # fmt: skip
def test_what_cannot_be_rewritten_is_named(lark: str, words: str) -> None:
    with pytest.raises(NotInJson) as caught:
        lark_in_json(lark)
    assert words in str(caught.value)
