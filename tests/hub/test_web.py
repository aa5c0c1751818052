"""The rules of the network: redirects, private addresses, proxies, certificates."""

import base64
import shutil
import socket
import ssl
import threading
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest

from shimmy.errors import PullFailed
from shimmy.hub.transfer import certificates, web
from shimmy.hub.transfer.patience import STRANGER_TRIES
from tests.hub.conftest import Place, Serve
from tests.hub.servers import FakeFiles, FakeHub, self_signed, speak_tls

MODEL = b"GGUF" + Random(1).randbytes(100_000)
NAME = "o/tiny"


@pytest.fixture
def hub(serve: Serve) -> FakeHub:
    made = FakeHub({NAME: {"tiny.gguf": MODEL}})
    serve(made)
    return made


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "2002:7f00:1::", "ff02::1", "64:ff9b:1::1", "nonsense", "fec0::1", "feff::1", "::127.0.0.1", "::8.8.8.8",
        "::ffff:0:127.0.0.1", "::ffff:0:10.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "2002:a00:1::",
        "2002:a9fe:a9fe::1", "1000::1", "4000::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not web.is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "::ffff:0:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1",
    ],
)  # fmt: skip
def test_addresses_that_are_public(address: str) -> None:
    assert web.is_public(address)


def test_no_redirect_from_a_public_address_to_a_private_one(
    hub: FakeHub, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The hub's own address counts as public here, and the one that it redirects to does not.
    monkeypatch.setattr(web, "is_public", lambda address: address == "127.0.0.1")
    hub.redirect = f"http://127.0.0.2:{hub.port}/signed/0/x"
    with pytest.raises(PullFailed, match=r"127\.0\.0\.2, an address that is not public"):
        place.pull(hub, NAME)


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://x", "http://user:word@127.0.0.1/", "http://[::1"],
)
def test_redirects_to_other_schemes_are_not_followed(hub: FakeHub, place: Place, location: str) -> None:
    hub.redirect = location
    with pytest.raises(PullFailed, match="not followed"):
        place.pull(hub, NAME)


def test_a_circle_of_redirects_ends(hub: FakeHub, place: Place) -> None:
    hub.redirect = f"{hub.url}/{NAME}/resolve/main/tiny.gguf"
    with pytest.raises(PullFailed, match="without an end"):
        place.pull(hub, NAME)


def test_from_https_no_redirect_leads_to_http() -> None:
    with pytest.raises(PullFailed, match="from HTTPS"):
        web._next("https://hf.co/x", "http://hf.co/x")
    assert web._next("http://hf.co/x", "https://hf.co/x") == "https://hf.co/x"
    assert web._next("https://hf.co/x/y", "../z") == "https://hf.co/z"


def test_a_url_of_a_private_address_is_refused_where_only_public_ones_are_allowed(serve: Serve, place: Place) -> None:
    server = FakeFiles({"/m.gguf": MODEL})
    serve(server)
    with pytest.raises(PullFailed, match="not public"):
        place.pull(server, f"{server.url}/other/../m.gguf#x".replace("127.0.0.1", "localhost"), is_public_only=True)
    assert not server.requests


def test_a_server_that_is_not_there_is_named(place: Place) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        server = FakeHub({})
        with server.running():
            url = f"http://127.0.0.1:{closed.getsockname()[1]}/m.gguf"
            with pytest.raises(PullFailed, match="cannot be reached"):
                place.pull(server, url)


# -- proxies ---------------------------------------------------------------------------------------------------------


def test_a_proxy_is_sent_whole_urls(serve: Serve, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = FakeFiles({"/m.gguf": MODEL})
    serve(proxy)
    monkeypatch.setenv("http_proxy", f"http://me:a%20b@127.0.0.1:{proxy.port}")
    path = place.pull(proxy, "http://nowhere.example/m.gguf")
    assert path.read_bytes() == MODEL
    asked, headers = proxy.requests[0]
    assert asked == "http://nowhere.example/m.gguf"
    assert headers["host"] == "nowhere.example"
    assert headers["proxy-authorization"] == f"Basic {base64.b64encode(b'me:a b').decode()}"


def test_hosts_of_no_proxy_are_asked_directly(hub: FakeHub, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    assert place.pull(hub, NAME).read_bytes() == MODEL


def names(monkeypatch: pytest.MonkeyPatch, addresses: dict[str, str], error: int = socket.EAI_NONAME) -> list[str]:
    """Has names lead to these addresses, and others to an error; returns those that are looked up."""
    really, asked = socket.getaddrinfo, []

    def look_up(host: str, port: int | None, **options: int) -> object:
        if options.get("flags") == socket.AI_NUMERICHOST or host == "127.0.0.1":
            return really(host, port, **options)
        asked.append(host)
        if host not in addresses:
            raise socket.gaierror(error, "no such name")
        return really(addresses[host], port, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.1", "0x7f000001", "2130706433", "[::1]", "10.0.0.1.", "intranet.example", "intranet.example."],
)
def test_a_proxy_is_not_asked_for_private_addresses_and_names_that_lead_there(
    serve: Serve, place: Place, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    proxy = FakeFiles({"/m.gguf": MODEL})
    serve(proxy)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
    names(monkeypatch, {"intranet.example": "10.1.2.3"})
    with pytest.raises(PullFailed, match="not public"):
        place.pull(proxy, f"http://{host}/m.gguf", is_public_only=True)
    assert not proxy.requests


@pytest.mark.parametrize("addresses", [{"far.example": "8.8.8.8"}, {}])
def test_a_proxy_is_asked_for_public_names_and_for_those_that_only_it_knows(
    serve: Serve, place: Place, monkeypatch: pytest.MonkeyPatch, addresses: dict[str, str]
) -> None:
    proxy = FakeFiles({"/m.gguf": MODEL})
    serve(proxy)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
    asked = names(monkeypatch, addresses)
    assert place.pull(proxy, "http://far.example/m.gguf", is_public_only=True).read_bytes() == MODEL
    assert asked == ["far.example"]  # once for all connections


@pytest.mark.parametrize(
    ("error", "n_tries"), [(socket.EAI_NONAME, 1), (socket.EAI_NODATA, 1), (socket.EAI_AGAIN, STRANGER_TRIES)]
)
@pytest.mark.parametrize("reference", ["http://no-hub.example/m.gguf", NAME])
def test_a_name_that_leads_nowhere_is_an_error_at_once_and_a_lookup_that_fails_is_waited_out(
    error: int, n_tries: int, reference: str, hub: FakeHub, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = names(monkeypatch, {}, error)
    with pytest.raises(PullFailed, match=r"`no-hub\.example` cannot be found \(no such name\)"):
        place.pull(hub, reference, endpoint=hub.url if "/m." in reference else "http://no-hub.example")
    assert asked == ["no-hub.example"] * n_tries
    assert place.kinds().count("waiting") == n_tries - 1


def test_a_server_that_was_never_reached_is_soon_given_up(hub: FakeHub, place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(
        PullFailed, match=rf"on port {port} \(Connection refused\); tried {STRANGER_TRIES} times: is the"
    ):
        place.pull(hub, NAME, endpoint=f"http://127.0.0.1:{port}")
    assert place.kinds().count("waiting") == STRANGER_TRIES - 1


def test_a_server_that_was_reached_before_is_waited_for(hub: FakeHub, place: Place) -> None:
    network = web.Web(place.settings(hub))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        network.open_socket("127.0.0.1", port, is_public_only=False).close()
    with pytest.raises(web.Trouble) as trouble:
        network.open_socket("127.0.0.1", port, is_public_only=False)
    assert not trouble.value.is_stranger


def test_a_name_that_was_found_before_is_waited_for(
    hub: FakeHub, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = {"near.example": "127.0.0.1"}
    names(monkeypatch, addresses)
    network = web.Web(place.settings(hub))
    assert network.look_up("near.example", 80)
    addresses.clear()
    with pytest.raises(web.Trouble):
        network.look_up("near.example", 80)
    with pytest.raises(PullFailed, match="is its name right"):
        network.look_up("x" * 64 + ".example", 80)


def test_a_name_that_nobody_answers_for_holds_no_pull_up(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()
    monkeypatch.setattr(web, "LOOKUP_TIMEOUT_S", 0.01)
    numeric = socket.getaddrinfo

    def look_up(host: str, port: int | None, **options: int) -> object:
        if options.get("flags") != socket.AI_NUMERICHOST:
            answer.wait()
        return numeric("127.0.0.1" if answer.is_set() else host, port, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    try:
        assert web._looked_up("far.example") == []
    finally:
        answer.set()


def test_a_proxy_of_another_kind_is_refused(hub: FakeHub, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(PullFailed, match="only HTTP proxies"):
        place.pull(hub, NAME)


# -- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of `localhost` that signs itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl on this machine")
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def tls(serve: Serve, certificate: tuple[Path, Path]) -> FakeFiles:
    server = FakeFiles({"/m.gguf": MODEL})
    speak_tls(server, certificate)
    serve(server)
    return server


def test_tls_is_verified_with_the_certificates_of_the_variable(
    tls: FakeFiles, place: Place, certificate: tuple[Path, Path]
) -> None:
    url = f"https://localhost:{tls.port}/m.gguf"
    with pytest.raises(PullFailed, match="SSL_CERT_FILE"):
        place.pull(tls, url)
    assert place.pull(tls, url, ca_file=str(certificate[0])).read_bytes() == MODEL
    with pytest.raises(PullFailed, match="certificate of `127"):
        place.pull(tls, url.replace("localhost", "127.0.0.1").replace("m.gguf", "n.gguf"), ca_file=str(certificate[0]))


def test_a_proxy_tunnels_tls(
    tls: FakeFiles, place: Place, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    heads: list[bytes] = []
    with ExitStack() as stack:
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        thread = threading.Thread(target=_tunnel, args=(listener, tls.port, heads, stack), daemon=True)
        thread.start()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        path = place.pull(tls, "https://localhost:7777/m.gguf", ca_file=str(certificate[0]))
        assert path.read_bytes() == MODEL
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
    assert heads[0].startswith(b"CONNECT localhost:7777 HTTP/1.1\r\n")


def _tunnel(listener: socket.socket, port: int, heads: list[bytes], stack: ExitStack) -> None:
    """Takes connections to anywhere to `port`."""
    while True:
        try:
            client = stack.enter_context(listener.accept()[0])
        except OSError:
            return
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += client.recv(1)
        heads.append(head)
        server = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
        for source, sink in ((client, server), (server, client)):
            threading.Thread(target=_pipe, args=(source, sink), daemon=True).start()


def _pipe(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65_536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


@pytest.mark.parametrize("place_of_system", ["file", "folder"])
def test_certificates_are_found_where_a_distribution_keeps_them(
    certificate: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place_of_system: str
) -> None:
    folder = tmp_path / "certs"
    folder.mkdir()
    shutil.copy(certificate[0], folder / "one.pem")
    is_file = place_of_system == "file"
    monkeypatch.setattr(certificates, "FILES", ("/nowhere/a.crt", str(folder / "one.pem")) if is_file else ())
    monkeypatch.setattr(certificates, "FOLDERS", ("/nowhere", str(folder)))
    context = certificates.context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert len(context.get_ca_certs()) == (1 if is_file else 0)  # those of a folder are read when they are needed


def test_a_system_without_certificates_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "FILES", ())
    monkeypatch.setattr(certificates, "FOLDERS", ())
    with pytest.raises(PullFailed, match="ca-certificates"):
        certificates.context()
    with pytest.raises(PullFailed, match="/nowhere"):
        certificates.context("/nowhere")
