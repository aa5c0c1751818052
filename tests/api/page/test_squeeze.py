"""What only people read goes; texts, regular expressions and what stands between backticks stay."""

import pytest

from shimmy.api.page.squeeze import squeezed

CASES = {
    "const a = 1;\n\nconst b  =  a + 2;\n": "const a=1;const b=a+2;",
    "// A comment.\nfoo(); // another\nbar();": "foo();bar();",
    'const a = "x  // no comment";': 'const a="x  // no comment";',
    r"const a = 'it\'s  here';": r"const a='it\'s  here';",
    "if (a in b) return -c;": "if(a in b)return-c;",
    "const n = (1000 * a) / b / c;": "const n=(1000*a)/b/c;",
    r"const r = /a  [/`] \/ \`/g;": r"const r=/a  [/`] \/ \`/g;",
    "html`<p>\n    ${ a ? html`<b>  x</b>` : { b: `}` } }\n  </p>`;  next();":
        "html`<p>${a?html`<b>  x</b>`:{b:`}`}}</p>`;next();",
    "html`<p>a\n  b\n  ${c}\n  ${d} <i\n  e>f\n</p>`": "html`<p>a\nb\n${c}\n${d} <i\ne>f</p>`",
    r"const a = `\`  \${`;  b();": r"const a=`\`  \${`;b();",
    "f(`a ${ '}' + \"`\" }  b`);  g();": "f(`a ${'}'+\"`\"}  b`);g();",
    "async function* f() {\n  yield* g();\n}\nclass A extends B {}":
        "async function*f(){yield*g();}class A extends B{}",
}  # fmt: skip


@pytest.mark.parametrize("source", CASES)
def test_squeezed(source: str) -> None:
    assert squeezed(source) == CASES[source]
    assert squeezed(CASES[source]) == CASES[source]
