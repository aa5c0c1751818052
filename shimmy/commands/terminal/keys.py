"""The bytes of a keyboard as keys: characters, keys with a name, pasted text.

Escape sequences are those of xterm, which the terminals of today send, and of the Linux console.
"""

import codecs
import contextlib
import os
import select
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass

_READ_BYTES = 1 << 12
_ESCAPE_S = 0.05  # after an escape the rest of its sequence comes at once; otherwise it was the key
_MAX_PASTE = 1 << 24  # characters
_MAX_SEQUENCE = 32
TEXT, PASTE = "text", "paste"
END = "end of input"

_INTERRUPT = "\x03"  # Ctrl-C
_CONTROLS = {
    "\x01": "home", "\x02": "left", _INTERRUPT: "interrupt", "\x04": "delete or leave", "\x05": "end", "\x06": "right",
    "\x08": "backspace", "\t": "complete", "\n": "enter", "\x0b": "cut to end", "\x0c": "clear screen", "\r": "enter",
    "\x0e": "down", "\x10": "up", "\x15": "cut to start", "\x17": "cut word", "\x19": "yank", "\x1a": "suspend",
    "\x7f": "backspace",
}  # fmt: skip
_AFTER_ESCAPE = {"b": "word left", "f": "word right", "d": "cut next word", "\x7f": "cut word", "\r": "newline"}
_FINAL = {"A": "up", "B": "down", "C": "right", "D": "left", "H": "home", "F": "end"}
_NUMBERED = {"1": "home", "3": "delete", "4": "end", "7": "home", "8": "end"}
_BY_WORD = {"left": "word left", "right": "word right"}  # with Ctrl or Alt
_PASTE_START, _PASTE_END = "200~", "\x1b[201~"


@dataclass(frozen=True, slots=True)
class Key:
    """A key by its name; `text` is what was typed (one character) or pasted."""

    name: str
    text: str = ""


class KeyReader:
    """Keys as they come from the terminal `descriptor`, which hands over each byte at once."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._at_end = False

    def __iter__(self) -> Iterator[Key]:
        """Waits for each key; the last one is END."""
        while character := self._next():
            if character == "\x1b":
                key = self._escaped()
            elif character in _CONTROLS:
                key = Key(_CONTROLS[character])
            else:
                key = Key(TEXT, character) if character >= " " else None
            if key is not None:
                yield key
        yield Key(END)

    @property
    def is_waiting(self) -> bool:
        """Whether more was typed already."""
        return bool(self._text) or bool(select.select([self._descriptor], [], [], 0)[0])

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Read in the background, for later; Ctrl-C drops what was typed before it, and is a KeyboardInterrupt for the
        main thread.

        The terminal's own signal would come twice: the frozen file's outer process passes it on to the one that has it.
        """
        reading, writing = os.pipe()
        thread = threading.Thread(target=self._watch, args=(reading,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            os.close(writing)
            thread.join()
            os.close(reading)

    def _watch(self, end: int) -> None:
        """Until nobody has the other side of the pipe `end` any more."""
        main = threading.main_thread().ident
        assert main is not None
        while True:
            if _INTERRUPT in self._text:
                self._text = self._text.rpartition(_INTERRUPT)[2]
                signal.pthread_kill(main, signal.SIGINT)
            if self._at_end or end in select.select([self._descriptor, end], [], [])[0]:
                return
            self._text += self._read()

    def _read(self) -> str:
        """What can be read now, which is nothing at the end."""
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except OSError:  # the terminal is gone
            data = b""
        self._at_end = not data
        return self._decoder.decode(data, self._at_end)

    def _next(self, within_s: float | None = None) -> str:
        """The next character; empty at the end of the input, or if there is none in time."""
        while not self._text:
            if self._at_end or not select.select([self._descriptor], [], [], within_s)[0]:
                return ""
            self._text = self._read()
        character, self._text = self._text[0], self._text[1:]
        return character

    def _escaped(self) -> Key | None:
        """What came behind an escape; None for what has no meaning here."""
        character = self._next(_ESCAPE_S)
        if character not in ("[", "O"):
            return Key(_AFTER_ESCAPE[character]) if character in _AFTER_ESCAPE else None
        sequence = ""
        while not sequence or not "@" <= sequence[-1] <= "~":
            further = self._next(_ESCAPE_S)
            if not further or len(sequence) > _MAX_SEQUENCE:
                return None
            sequence += further
        if sequence == _PASTE_START:
            return Key(PASTE, self._pasted())
        parameters, final = sequence[:-1].split(";"), sequence[-1]
        name = _NUMBERED.get(parameters[0]) if final == "~" else _FINAL.get(final)
        if name is None:
            return None
        return Key(_BY_WORD.get(name, name) if len(parameters) > 1 else name)

    def _pasted(self) -> str:
        """Text up to the mark of its end; what is beyond the limit is dropped."""
        parts: list[str] = []
        n_characters, tail = 0, ""
        while character := self._next():
            if n_characters < _MAX_PASTE:
                parts.append(character)
                n_characters += 1
            tail = (tail + character)[-len(_PASTE_END) :]
            if tail == _PASTE_END:
                break
        return "".join(parts).removesuffix(_PASTE_END).replace("\r\n", "\n").replace("\r", "\n")
