"""Calls of MiniCPM 5: tagged arguments, where CDATA stands around texts that have characters of XML in them.

Recognises its templates and has the format, which `tagged` writes, forces and reads. The template writes each call of
the history twice, so the format cannot be read off it.
"""

from shimmy.messages.reply import ArgumentSyntax, ToolFormat

FORM = ToolFormat(
    call_start='<function name="',
    call_end="</function>",
    between="\n",
    separator='">',
    syntax=ArgumentSyntax.TAGGED,
    key_start='<param name="',
    key_end='">',
    value_end="</param>",
    quote_start="<![CDATA[",
    quote_end="]]>",
)


def is_taught(template: str) -> bool:
    """Whether a template writes calls in this way."""
    return FORM.quote_start in template and FORM.call_start in template and FORM.key_start in template
