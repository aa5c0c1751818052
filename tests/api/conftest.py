"""Whatever a test of the API is about, the replies that it gets are those that the OpenAPI document describes."""

import pytest

from tests.api.conformance import assert_conforms
from tests.fakes import Call, Reply


@pytest.fixture(autouse=True)
def replies_conform(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_reply = Call.reply

    def reply(call: Call) -> Reply:
        received = plain_reply(call)
        assert_conforms(call.method, call.path, received)
        return received

    monkeypatch.setattr(Call, "reply", reply)
