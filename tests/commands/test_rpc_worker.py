"""The life of `rpc-worker`; what it does for clients is in tests/e2e/test_other_machines.py."""

import asyncio
from collections.abc import Sequence
from socket import socket
from typing import TYPE_CHECKING, cast

import pytest

from shimmy.commands.machines.rpc_worker import _serve
from tests.fakes import on_loop

if TYPE_CHECKING:
    from shimmy.rpc.front import Front
    from shimmy.system.frozen_program import UnpackedFolder


class _Home:
    """Of a program whose outer process is killed at once."""

    async def until_orphaned(self) -> None:
        return


class _Front:
    has_ended = False

    async def serve(self, _listeners: Sequence[socket]) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.has_ended = True


@on_loop
async def test_it_ends_with_the_program_that_started_it(caplog: pytest.LogCaptureFixture) -> None:
    front = _Front()
    async with asyncio.timeout(10):
        await _serve(cast("Front", front), (), cast("UnpackedFolder", _Home()))
    assert front.has_ended
    assert "was killed" in caplog.text
