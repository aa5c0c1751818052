"""The program under test serves the page that its sources make, also where none of them is at hand."""

import gzip

import pytest

from shimmy.api.page.assembled import page
from tests.e2e.harness import Server

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8", "Accept-Encoding": "gzip, deflate, br"}


@pytest.mark.smoke
def test_the_page_is_that_of_the_sources(server: Server) -> None:
    reply = server.request("GET", "/", headers=BROWSER)
    packed, policy = page()
    assert (reply.status, reply.headers["content-security-policy"]) == (200, policy.decode())
    assert gzip.decompress(reply.body) == gzip.decompress(packed)
    again = server.request("GET", "/", headers=BROWSER | {"If-None-Match": reply.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    head = server.request("HEAD", "/", headers=BROWSER)
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(reply.body)))
    assert server.get("/").json()["name"] == "shimmy"
