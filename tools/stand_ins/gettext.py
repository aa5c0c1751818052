"""Stands in for `gettext`, of which argparse takes two functions. The frozen file has no translations of its messages.

The real one looks for them in four files for each message, 200 times: 6 ms of a start. It brings `locale`, too.
"""


def gettext(message: str) -> str:
    """As the real one where there is no translation."""
    return message


def ngettext(msgid1: str, msgid2: str, n: int) -> str:
    """As the real one where there is no translation."""
    return msgid1 if n == 1 else msgid2
