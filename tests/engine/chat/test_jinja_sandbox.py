"""The language is the one of Hugging Face's templates, and a hostile template reaches and makes nothing of note."""

from datetime import datetime
from time import perf_counter
from typing import Any

import pytest

from shimmy.engine.chat.jinja_sandbox import MAX_SOURCE_CHARACTERS, compile_template
from shimmy.engine.chat.time_limit import within
from shimmy.errors import TemplateFailed


def render(source: str, **variables: Any) -> str:
    return within(10.0, lambda: compile_template(source)(variables))  # each render has a thread, hence a meter


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ {'b': '<é & \"🦀\">', 'a': none} | tojson }}", '{"b": "<é & \\"🦀\\">", "a": null}'),
        ("{{ {'b': 1, 'a': [true]} | tojson(indent=2) }}", '{\n  "b": 1,\n  "a": [\n    true\n  ]\n}'),
        ("{{ {'b': 1, 'a': 2} | tojson(separators=(',', ':'), sort_keys=true) }}", '{"a":2,"b":1}'),
        ("{{ 'é' | tojson(ensure_ascii=true) }}", '"\\u00e9"'),
        ("{% for i in [0, 1, 2] %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "02"),
        ("{% for i in [0, 1, 2] %}{% if i == 1 %}{% break %}{% endif %}{{ i }}{% endfor %}", "0"),
        ("{% set ns = namespace(n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "3"),
        ("{% macro f(x, y='b') %}{{ x }}{{ y }}{{ varargs | join }}{% endmacro %}{{ f(1, 2, 3, 4) }}", "1234"),
        ("{% macro f() %}[{{ caller('x') }}]{% endmacro %}{% call(v) f() %}{{ v }}{% endcall %}", "[x]"),
        ("{% generation %}{% set x = 1 %}a{% endgeneration %}b", "ab"),
        ("{% set x %}a{{ 1 }}b{% endset %}{{ x | upper }}", "A1B"),
        ("{% filter upper %}a{{ 'b' }}{% endfilter %}", "AB"),
        ("{{ 'a' ~ 1 ~ none ~ [2] }}", "a1None[2]"),
        ("{{ 'abcdef'[1:-1:2] }}{{ [1, 2, 3][1:] }}{{ (1, 2)[:1] }}", "bd[2, 3](1,)"),
        (
            "{{ 'a,b'.split(',') | join('+') }}{{ ' x '.strip() }}{{ 'xxa'.lstrip('x') }}{{ 'a'.ljust(3) }}|",
            "a+bxaa  |",
        ),
        (
            "{{ 'a-b-c'.rsplit('-', 1) }}{{ 'a b'.split() }}{{ 'a\nb'.splitlines() }}",
            "['a-b', 'c']['a', 'b']['a', 'b']",
        ),
        ("{{ 'aXbX'.replace('X', '-', 1) }}{{ 'ab' | replace('b', 'c') }}", "a-bXac"),
        ("{{ '{0} {x:>3}|{0[0]}'.format('ab', x=1) }}", "ab   1|a"),
        ("{{ '%s=%05.1f%%' % ('x', 2) }}{{ '%(a)s' % {'a': 1} }}{{ '%s-%s' | format(1, 2) }}", "x=002.0%11-2"),
        ("{{ 'a\nb' | indent(2) }}|{{ 'x' | center(5) }}|{{ 'the fox' | title }}", "a\n  b|  x  |The Fox"),
        ("{{ [3, 1, 2] | sort | map('string') | join(',') }}{{ [1, 2] | sum }}{{ [{'n': 2}] | sum('n') }}", "1,2,332"),
        ("{{ [{'r': 'a', 'v': 1}, {'r': 'b'}] | selectattr('v', 'defined') | map(attribute='r') | list }}", "['a']"),
        ("{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{% endfor %}", "a2b1"),
        ("{% for g in [{'k': 1}, {'k': 1}] | groupby('k') %}{{ g.grouper }}{{ g.list | length }}{% endfor %}", "12"),
        ("{{ dict([('a', 1)], b=2) }}{{ dict({'a': 1}) }}", "{'a': 1, 'b': 2}{'a': 1}"),
        ("{{ unknown }}|{{ unknown is defined }}", "|False"),
        (
            "{{ 7 // 2 }} {{ 2 ** 10 }} {{ 7 % 4 }} {{ 'ab' * 2 }} {{ [1] * 2 }} {{ 2.567 | round(1) }}",
            "3 1024 3 abab [1, 1] 2.6",
        ),
        ("{{ '<a>' | e }}{{ '<a>' | safe }}{{ '<a>' }}", "&lt;a&gt;<a><a>"),
        ("{% set j = joiner(',') %}{{ j() }}a{{ j() }}b", "a,b"),
        ("{% for x in [1, 2] %}{{ loop.index }}/{{ loop.length }}{{ loop.cycle('a', 'b') }}{% endfor %}", "1/2a2/2b"),
        ("{% for x in [[1, [2]]] recursive %}{{ x if x is number else loop(x) }}{% endfor %}", "12"),
        ("{{ 'x' in ['x', 'y'] and 'z' not in 'xy' }}{{ [1, [2]] == [1, [2]] }}", "TrueTrue"),
    ],
)
def test_what_templates_rely_on(source: str, expected: str) -> None:
    assert render(source) == expected


def test_strftime_now_is_the_local_time() -> None:
    assert render("{{ strftime_now('%Y') }}") in {str(datetime.now().astimezone().year + n) for n in (-1, 0, 1)}


def test_raise_exception_carries_the_message() -> None:
    with pytest.raises(TemplateFailed, match=r"^the chat template refused the messages: no, 3$"):
        render("{{ raise_exception('no, ' ~ 3) }}")


@pytest.mark.parametrize(
    "expression",
    [
        "messages.__class__",
        "messages['__class__']",
        "messages | attr('__class__')",
        "[messages] | map(attribute='__class__') | first",
        "raise_exception.__globals__",
        "strftime_now | attr('__globals__')",
        "range.__globals__",
        "dict.__self__",
        "namespace.__init__",
        "namespace(a=1).__class__",
        "joiner.__init__",
        "self.__init__",
        "self._TemplateReference__context",
        "f._func",
        "f.__call__",
        "''.format.func",
        "'a'.join.args",
        "(messages | map('upper')).gi_frame",
        "messages.append",
        "facts.update",
        "(1).to_bytes",
        "facts.items().mapping",
    ],
)
def test_nothing_else_is_reached(expression: str) -> None:
    source = "{% macro f() %}{% endmacro %}{{ (" + expression + ") is undefined }}"
    assert render(source, messages=["hi"], facts={"a": 1}) == "True"


@pytest.mark.parametrize(
    "expression",
    [
        "'{0.__class__}'.format(messages)",
        "'{m.__class__.__mro__}'.format_map({'m': messages})",
        "('{0.__globals__[json]}' | attr('format'))(raise_exception)",
        "([messages, messages] | sort(attribute='__class__.__mro__'))",
        "messages.__class__()",
        "messages.append('x')",
        "messages.clear()",
        "facts.update({'a': 1})",
        "facts.pop('a')",
        "'x'.encode()",
        "'x'.translate({120: 'y'})",
        "lipsum()",
        "cycler(1)",
    ],
)
def test_nothing_is_let_out_or_changed(expression: str) -> None:
    messages, facts = ["hi"], {"a": 1}
    try:
        text = render("{{ " + expression + " }}", messages=messages, facts=facts)
    except TemplateFailed:
        text = ""
    assert text == ""
    assert (messages, facts) == (["hi"], {"a": 1})


def test_a_list_of_the_template_may_grow_and_shrink_by_texts() -> None:
    source = "{% set ns = namespace(x=[]) %}{% set _ = ns.x.append('a') %}{% set _ = ns.x.append(2) %}"
    assert render(source + "{{ ns.x.pop(0) }}{{ ns.x }}{{ ns.x.pop() }}{{ ns.x | length }}") == "a[2]20"
    for value in ("ns.x", "[1]", "{}", "ns"):
        with pytest.raises(TemplateFailed, match="neither a text nor a number"):
            render(source + "{% set _ = ns.x.append(" + value + ") %}")
    with pytest.raises(TemplateFailed):
        render("{% set x = [1] %}{% for i in x %}{% set _ = x.append('a' * 1000) %}{% endfor %}")


GROWING = "{% set ns = namespace(x=START) %}{% for i in range(99) %}{% set ns.x = STEP %}{% endfor %}{{ ns.x }}"
LONG = "{% set s = 'a' * 1000000 %}"


def growing(start: str, step: str) -> str:
    return GROWING.replace("START", start).replace("STEP", step)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10 ** 9 }}",
        "{{ 10 ** 9 * [1] }}",
        "{{ 10 ** (10 ** 8) }}",
        "{{ (0 - 10) ** (10 ** 8) }}",
        growing("3", "ns.x * ns.x"),
        growing("'ab'", "ns.x + ns.x"),
        growing("'ab'", "ns.x ~ ns.x"),
        growing("[1]", "ns.x + ns.x"),
        growing("[1]", "[ns.x, ns.x]"),
        growing("(1,)", "(ns.x, ns.x)"),
        growing("{}", "{'a': ns.x, 'b': ns.x}"),
        growing("{}", "dict(a=ns.x, b=ns.x)"),
        (
            "{% set ns = namespace(x=1) %}{% macro f() %}{% set ns.x = varargs %}{% endmacro %}"
            "{% for i in range(99) %}{{ f(ns.x, ns.x) }}{% endfor %}"
        ),
        (
            "{% set ns = namespace(x=1) %}{% macro f() %}{% set ns.x = kwargs %}{% endmacro %}"
            "{% for i in range(99) %}{{ f(a=ns.x, b=ns.x) }}{% endfor %}"
        ),
        *(f"{{{{ 'x'.{method}(10 ** 9) }}}}" for method in ("center", "ljust", "rjust", "zfill")),
        "{{ 'x' | center(10 ** 9) }}",
        "{{ '\t'.expandtabs(10 ** 9) }}",
        "{{ '%0999999999d' % 1 }}",
        "{{ '%*d' % (10 ** 9, 1) }}",
        "{{ '%.999999999f' % 1 }}",
        "{{ '%(a(b))999999999d' % {'a(b)': 1} }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ '{:>{w}}'.format(1, w=10 ** 9) }}",
        "{{ '{a:999999999}'.format_map({'a': 1}) }}",
        LONG + "{{ ('{0}' * 1000).format(s) }}",
        LONG + "{{ ('%(s)s' * 1000) % {'s': s} }}",
        LONG + "{{ s.join(['b'] * 1000) }}",
        LONG + "{{ (['b'] * 1000) | join(s) }}",
        LONG + "{{ range(99999) | map(attribute='x', default=s) | join }}",
        LONG + "{{ s.replace('a', s) }}",
        LONG + "{{ s | replace('', s) }}",
        LONG + "{{ s.rfind('b' + s) }}",
        LONG + "{{ s.strip('bcd' * 1000) }}",
        LONG + "{{ (s * 60).split('aa') }}",
        "{{ ('a ' * 30000000).split() }}",
        "{{ ('a ' * 30000000) | title }}",
        "{{ ('\n' * 1000000) | indent(900, true, true) }}",
        "{{ 'a' | indent(10 ** 9, true) }}",
        "{{ [1] | tojson(indent=10 ** 9) }}",
        "{{ range(99999) | list | tojson(separators=('x' * 100000, '')) }}",
        LONG + "{% for i in range(99999) %}{{ s }}{% endfor %}",
        LONG + "{% set y %}{% for i in range(99999) %}{{ s }}{% endfor %}{% endset %}",
        LONG + "{% set s = s * 50 %}{% macro f(t) %}{% set u = t[1:] %}{{ f(u) }}{% endmacro %}{{ f(s) }}",
        "{{ 1.5 | round(10 ** 9, 'ceil') }}",
        "{{ ('1' * 9999) | int(base=2) * 2 }}",
        "{{ range(10 ** 9) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ 1" + "+1" * 20000 + " }}",
        "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
        "{% include 'x' %}",
        "{% extends 'x' %}",
        "{{ 1 | xmlattr }}",
        "{# " + "x" * MAX_SOURCE_CHARACTERS + " #}",
    ],
)
def test_what_would_be_large_or_endless_fails(source: str) -> None:
    with pytest.raises(TemplateFailed):
        render(source)


def test_a_long_conversation_is_not_large() -> None:
    messages = [{"role": "user", "content": "word " * 400} for _ in range(1000)]
    source = (
        "{% set ns = namespace(text='', seen=[]) %}{% for m in messages %}"
        "{% if loop.index % 10 == 0 %}{% set ns.text = ns.text + m.content | trim %}{% endif %}"
        "{% set ns.seen = ns.seen + [loop.index] %}"
        "{{ '<' ~ m.role ~ '>' + m.content.strip().replace('word', 'ward') + m.content.split('x')[-1] }}{% endfor %}"
    )
    text = render(source, messages=messages)
    assert len(text) == 1000 * (6 + 1999 + 2000)


@pytest.mark.parametrize(
    "source",
    [
        # Each was one step of C that took seconds, with Python's lock.
        "{{ ('%000d' * 24 ~ '%') % 1 }}",
        "{{ ('%0 00d' * 30 ~ '%') % 1 }}",
        "{{ (('x' * 1000) * 100) % () }}",
        "{{ ('{0:' ~ ('x' * 1000) * 10 ~ '}').format(1) }}",
        "{% set x = ('x' * 1000) * 10000 %}{{ x.swapcase() }}",
        "{% set x = ('x' * 1000) * 10000 %}{{ x|upper }}",
        "{% set x = ('x' * 1000) * 100 %}{{ x.rfind(('x' * 1000) * 10 ~ 'y') }}",
    ],
)
def test_no_step_takes_long(source: str) -> None:
    begun_s = perf_counter()
    with pytest.raises(TemplateFailed):
        compile_template(source)({"messages": []})
    assert perf_counter() - begun_s < 3
