"""What a person writes to name a model elsewhere: a repository of the hub, a name of Ollama's registry, a URL.

Knows how references are written, and nothing of the network.
"""

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from shimmy.errors import BadRequest

MAX_CHARACTERS = 1024
HUB_HOSTS = ("hf.co", "huggingface.co", "www.huggingface.co")
OLLAMA_HOSTS = ("registry.ollama.ai", "ollama.com", "www.ollama.com")

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_FORMS = "write OWNER/NAME[:TAG] or hf.co/OWNER/NAME[:TAG], ollama:NAME[:TAG], or the URL of a GGUF file"


@dataclass(frozen=True, slots=True)
class HubReference:
    """A repository of the hub, and which model of it: that of a tag, such as a quantisation, or of a file."""

    owner: str
    name: str
    tag: str = ""  # '' for the hub's own choice
    revision: str = "main"
    file: str = ""  # its path in the repository

    @property
    def repository(self) -> str:
        return f"{self.owner}/{self.name}"


@dataclass(frozen=True, slots=True)
class OllamaReference:
    """A model of Ollama's registry."""

    namespace: str
    name: str
    tag: str


@dataclass(frozen=True, slots=True)
class UrlReference:
    """One GGUF file."""

    url: str
    file_name: str
    sha256: str = ""  # '' when unknown


Reference = HubReference | OllamaReference | UrlReference


def parse(text: str, endpoint: str = "") -> Reference:
    """What `text` names; URLs of the hub at `endpoint` are the hub's, too. Raises BadRequest."""
    written = text.strip()
    if not written or len(written) > MAX_CHARACTERS or not written.isprintable() or any(map(str.isspace, written)):
        raise _not_one(text)
    lowered = written.lower()
    if lowered.startswith(("http://", "https://")):
        return _from_url(written, endpoint)
    if lowered.startswith("ollama:"):
        return _ollama(written[len("ollama:") :].removeprefix("//"))
    host, slash, rest = written.partition("/")
    if slash and host.lower() in OLLAMA_HOSTS:
        return _ollama(rest.removeprefix("library/"))
    if slash and host.lower() in HUB_HOSTS:
        written = rest
    return _hub(written)


def _hub(text: str) -> HubReference:
    """`OWNER/NAME[@REVISION][:TAG]`; the tag may be the path of a file."""
    place, _, tag = text.partition(":")
    repository, _, revision = place.partition("@")
    owner, slash, name = repository.partition("/")
    is_file = tag.lower().endswith(".gguf")
    if "." in owner and "/" in name:
        raise BadRequest(
            f"`{owner[:100]}` is no place that models are pulled from: those are {HUB_HOSTS[0]} and {OLLAMA_HOSTS[0]}, "
            "the hub that `HF_ENDPOINT` names in the first one's place, and URLs of GGUF files",
            param="model",
        )
    if not slash and is_ollama_name(text):
        raise BadRequest(
            f"`{text}` names no model to pull: `ollama:{text}` does, in Ollama's registry; on Hugging Face it has an "
            "owner, as in OWNER/NAME[:TAG]",
            param="model",
        )
    if not slash or not (_is_name(owner) and _is_name(name)):
        raise _not_one(text)
    if (":" in text and not (is_file or _TAG.fullmatch(tag))) or ("@" in place and not revision):
        raise _not_one(text)
    return HubReference(owner, name, "" if is_file else tag, _revision(revision or "main"), tag if is_file else "")


def _from_url(url: str, endpoint: str) -> Reference:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise _not_one(url) from None
    if not host or parts.username is not None:
        raise BadRequest(f"`{url[:200]}` cannot be pulled: a URL needs a host, and names no user", param="model")
    own = urlsplit(endpoint)
    if host in HUB_HOSTS or (endpoint and (parts.scheme, parts.netloc) == (own.scheme, own.netloc)):
        path = unquote(parts.path)
        if host not in HUB_HOSTS:
            path = path.removeprefix(own.path)
        return _hub_url(path.strip("/"), url)
    if host in OLLAMA_HOSTS:
        return _ollama(unquote(parts.path).strip("/").removeprefix("library/"))
    file_name = unquote(parts.path).rpartition("/")[2]
    if not file_name.lower().endswith(".gguf") or not is_safe_path(file_name):
        raise BadRequest(f"`{url[:200]}` is not the URL of a .gguf file", param="model")
    sha256 = parts.fragment.removeprefix("sha256=").lower() if parts.fragment.startswith("sha256=") else ""
    if sha256 and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise BadRequest("`#sha256=` needs 64 hexadecimal digits behind it", param="model")
    return UrlReference(url.partition("#")[0], file_name, sha256)


def _hub_url(path: str, url: str) -> HubReference:
    """`OWNER/NAME`, `OWNER/NAME/tree/REVISION`, `OWNER/NAME/(resolve|blob)/REVISION/FILE`."""
    parts = path.split("/")
    if len(parts) in {2, 4} and (len(parts) == 2 or parts[2] == "tree"):
        found = _hub("/".join(parts[:2]))
        return HubReference(found.owner, found.name, found.tag, _revision(parts[3]) if len(parts) == 4 else "main")
    file = "/".join(parts[4:])
    if len(parts) < 5 or parts[2] not in {"resolve", "blob"} or not file.lower().endswith(".gguf"):
        raise _not_one(url)
    found = _hub("/".join(parts[:2]))
    return HubReference(found.owner, found.name, "", _revision(parts[3]), file)


def _ollama(text: str) -> OllamaReference:
    """`[NAMESPACE/]NAME[:TAG]`."""
    place, _, tag = text.partition(":")
    namespace, slash, name = place.partition("/")
    if not slash:
        namespace, name = "library", place
    if not (_is_name(namespace) and _is_name(name)) or (":" in text and not _TAG.fullmatch(tag)):
        raise _not_one(f"ollama:{text}")
    return OllamaReference(namespace, name, tag or "latest")


def is_ollama_name(text: str) -> bool:
    """Whether Ollama's registry may have a model of this name, which is written as Ollama's users do."""
    try:
        _ollama(text)
    except BadRequest:
        return False
    return True


def _is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None and "--" not in text and ".." not in text


def _revision(text: str) -> str:
    if not is_safe_path(text) or "%" in text:
        raise BadRequest(f"`{text[:100]}` cannot be a revision", param="model")
    return text


def _not_one(text: str) -> BadRequest:
    return BadRequest(f"`{text.strip()[:200]}` does not name a model to pull: {_FORMS}", param="model")


def is_safe_path(path: str) -> bool:
    """Whether a relative path as a server names it stays in its folder, and is one that people can read."""
    parts = path.split("/")
    return (
        0 < len(path) <= 1024
        and path.isprintable()
        and "\\" not in path
        and all(0 < len(part.encode(errors="replace")) <= 200 and part not in {".", ".."} for part in parts)
    )
