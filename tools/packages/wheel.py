"""A wheel that carries the one file: `pip install`, `pipx run` and `uvx` put it on the PATH. Needs no Python code.

The format is that of https://packaging.python.org/en/latest/specifications/binary-distribution-format/: the program
lies in the folder for scripts, which installers copy and make executable.
"""

import base64
import hashlib
import tomllib
from collections.abc import Mapping

from shimmy import __version__
from tools.packages.archives import PROGRAM_MODE, Entry, zipped
from tools.packages.machines import Machine
from tools.steps import ROOT

_DESCRIPTION = """\
# Shimmy

One executable file that serves language models, GGUF files and SafeTensors folders, over the OpenAI API. This package
carries the file; it brings no Python module and needs no other package.

```sh
shimmy serve --model-path ~/models
shimmy generate ~/models/some.gguf --prompt "Why is the sky blue?"
```

Any OpenAI client works when its base URL is `http://127.0.0.1:11435/v1`.
"""


def wheel(
    program: bytes, machine: Machine, licenses: Mapping[str, bytes], sboms: Mapping[str, bytes], name: str
) -> tuple[str, bytes]:
    """File name and content of a wheel of the distribution `name`. `licenses` are the texts to hand on, by name, and
    `sboms` lists of what is inside, which lie where PEP 770 has them."""
    platform = ".".join(machine.wheel_tags)
    stem = f"{name.replace('-', '_')}-{__version__}"
    info = f"{stem}.dist-info"
    entries = {
        f"{stem}.data/scripts/shimmy": Entry(program, PROGRAM_MODE),
        **{f"{info}/licenses/{file}": Entry(text) for file, text in sorted(licenses.items())},
        **{f"{info}/sboms/{file}": Entry(text) for file, text in sorted(sboms.items())},
        f"{info}/METADATA": Entry(_metadata(name, licenses).encode()),
        f"{info}/WHEEL": Entry(_wheel_file(machine).encode()),
    }
    record = f"{info}/RECORD"
    entries[record] = Entry(_record(entries, record).encode())
    return f"{stem}-py3-none-{platform}.whl", zipped(entries)


def _metadata(name: str, licenses: Mapping[str, bytes]) -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [
        "Metadata-Version: 2.4",
        f"Name: {name}",
        f"Version: {__version__}",
        f"Summary: {project['description']}",
        f"Author: {project['authors'][0]['name']}",
        f"License-Expression: {project['license']['text']}",
        *(f"License-File: {file}" for file in sorted(licenses)),
        "Classifier: Operating System :: POSIX :: Linux",
        "Requires-Python: >=3.7",
        "Description-Content-Type: text/markdown",
        "",
        _DESCRIPTION,
    ]
    return "\n".join(lines)


def _wheel_file(machine: Machine) -> str:
    tags = [f"Tag: py3-none-{platform}" for platform in machine.wheel_tags]
    return "\n".join(["Wheel-Version: 1.0", "Generator: shimmy", "Root-Is-Purelib: false", *tags, ""])


def _record(entries: Mapping[str, Entry], record: str) -> str:
    """Each file with its hash and size; the record itself has none."""
    lines = [f"{path},sha256={_digest(entry.content)},{len(entry.content)}" for path, entry in entries.items()]
    return "\n".join([*lines, f"{record},,", ""])


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
