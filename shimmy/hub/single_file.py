"""A GGUF file at a URL, with the other parts of its model where it is one of several, into a folder of models."""

import re
from pathlib import Path

from shimmy.errors import BadRequest, NotFound
from shimmy.hub.references import UrlReference
from shimmy.hub.settings import HubSettings
from shimmy.hub.transfer.download import fetch
from shimmy.hub.transfer.file_source import RemoteFile, Transfer

_PART = re.compile(r"-(\d{5})-of-(\d{5})(?=\.gguf)", re.IGNORECASE)
_MAX_PARTS = 1000


def pull_url(reference: UrlReference, settings: HubSettings, transfer: Transfer) -> Path:
    """Have the file in the folder; the path of the first part."""
    folder = settings.folder
    if folder is None:
        raise BadRequest("no folder is searched for models: name one with --model-dirs, and pull again")
    if settings.is_offline:
        raise NotFound("HF_HUB_OFFLINE is set: nothing is pulled from URLs")
    locks = folder / ".locks"
    files = _files(reference, settings, locks)
    transfer.meter.total = None
    transfer.meter.say("files", files=[{"name": file.name, "size_bytes": None} for file in files], total_bytes=None)
    for file in files:
        fetch(file, folder / file.name, locks / f"{file.name}.lock", transfer)
    return folder / files[0].name


def _files(reference: UrlReference, settings: HubSettings, locks: Path) -> list[RemoteFile]:
    """All parts of the model, the first one first."""
    names = [(reference.file_name, reference.url)]
    part = _PART.search(reference.file_name)
    if part and 1 < int(part[2]) <= _MAX_PARTS and not reference.sha256:
        numbers = [f"-{number:05}-of-{part[2]}" for number in range(1, int(part[2]) + 1)]
        path, question, query = reference.url.partition("?")
        names = [
            (_PART.sub(number, reference.file_name), f"{_PART.sub(number, path)}{question}{query}")
            for number in numbers
        ]
    return [
        RemoteFile(
            name,
            url,
            digest=reference.sha256,
            is_public_only=settings.is_public_only,
            note=locks / f"{name}.source",
        )
        for name, url in names
    ]
