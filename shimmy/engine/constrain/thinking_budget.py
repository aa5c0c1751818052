"""Ends a job's reasoning after so many tokens: a guide that forces the end mark, and otherwise asks an inner guide.

Knows the marks of reasoning as bytes and tokens; nothing of templates or grammars. `chat.thinking` has found the marks,
the inner guide may be of `guides` (a grammar, or the calls of `tool_grammar`), and `text.reply_parser` splits the
reasoning off.
"""

from collections.abc import Callable, Sequence

from shimmy.engine.schedule.task import Guide


class ThinkingBudget:
    """Reasoning begins at once where `is_thinking`, else where the reply itself begins with the first of `marks`.

    `end_tokens` end the reasoning after `n_max` tokens. `spelled` returns the bytes of a token. `inner` accepts every
    token.
    """

    def __init__(
        self,
        inner: Guide | None,
        *,
        marks: tuple[bytes, bytes],
        end_tokens: Sequence[int],
        spelled: Callable[[int], bytes],
        n_max: int,
        is_thinking: bool,
    ) -> None:
        self._inner = inner
        self._start, self._end = marks
        self._end_tokens = list(end_tokens)
        self._spelled = spelled
        self._n_left = n_max
        self._tail = b""
        self._is_thinking = is_thinking
        self._is_done = False
        self._ending: list[int] = []  # of `end_tokens`, those still to come
        if is_thinking and not n_max:
            self._ending = list(end_tokens)

    @property
    def is_over(self) -> bool:
        return self._inner is not None and self._inner.is_over

    def allows(self, token: int) -> bool:
        if self._ending:
            return token == self._ending[0]
        return self._inner is None or self._inner.allows(token)

    def allowed(self) -> bytes:
        if self._ending:
            token = self._ending[0]
            return bytes(token // 8) + bytes([1 << token % 8])
        assert self._inner is not None  # without an inner guide, `allows` was True and this is not called
        return self._inner.allowed()

    def accept(self, token: int) -> None:
        if self._inner is not None:
            self._inner.accept(token)
        if not self._is_done:
            self._follow(token)

    def forced(self) -> list[int]:
        if self._ending:
            return list(self._ending)
        return [] if self._inner is None else self._inner.forced()

    def _follow(self, token: int) -> None:
        if self._ending and token == self._ending[0]:
            del self._ending[0]
            self._is_done = not self._ending
            return
        self._tail += self._spelled(token)
        if not self._is_thinking:
            self._look_for_start()
            return
        if self._end in self._tail:
            self._is_done = True
            return
        self._tail = self._tail[-len(self._end) :]
        self._n_left -= 1
        if self._n_left <= 0 and not self._is_ending():
            self._ending = list(self._end_tokens)

    def _is_ending(self) -> bool:
        """Whether the model has begun to write the end mark by itself."""
        return any(self._tail.endswith(self._end[:n]) for n in range(1, len(self._end)))

    def _look_for_start(self) -> None:
        said = self._tail.lstrip()
        if said.startswith(self._start):
            self._is_thinking = True
            self._tail = b""
            if not self._n_left:
                self._ending = list(self._end_tokens)
        elif not self._start.startswith(said):
            self._is_done = True  # the reply has no reasoning
