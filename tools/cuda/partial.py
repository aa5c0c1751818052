"""A library of a part of the backend's objects, for one kind of GPU: what a check of the build and tests can afford.

What was not compiled is stood in for by functions that end the program. Such a library finds no driver, answers for its
devices, and computes nothing.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from tools.cuda.library import CUBLAS, LIBRARY, check, link, link_key
from tools.cuda.objects import ONE_GPU, compiled, sources
from tools.cuda.toolkit import FOLDER
from tools.portable.compiler import compiler
from tools.portable.target import BUILD_MACHINE
from tools.steps import key_of, run

# Names of C++, but for those of its own library.
_NAME = re.compile(r"^_Z(?!N?[KVrR]*S[tabsiod]|N?[KVrR]*St|nw|na|dl|da|T[ITVS]|GV)")


def partial_library(files: Sequence[Path]) -> Path:
    """The library of these sources and of our own cuBLAS, checked as the whole one is."""
    objects = compiled([CUBLAS, *files], ONE_GPU)
    folder = FOLDER / "partial" / key_of(link_key(), *(path.name for path in objects))
    made = folder / LIBRARY
    if not made.exists():
        work = folder / "work"
        work.mkdir(parents=True, exist_ok=True)
        link(objects, work / LIBRARY, _stand_ins(objects, folder))
        check(work / LIBRARY)
        (work / LIBRARY).rename(made)
    return made


def check_backend() -> Path:
    """That of all sources of the backend but for instances of templates: ten minutes of processor time."""
    return partial_library([file for file in sources() if file.parent.name != "template-instances"])


def _stand_ins(objects: Sequence[Path], folder: Path) -> Path:
    """An object of what the others miss."""
    defined = set(run(["nm", "--defined-only", "--format=just-symbols", *objects]).split())
    missing = set(run(["nm", "--undefined-only", "--format=just-symbols", *objects]).split()) - defined
    lines = [".text"]
    for name in sorted(filter(_NAME.match, missing)):
        lines += [f".globl {name}", f".hidden {name}", f"{name}: ud2"]
    source = folder / "stand-ins.s"
    source.write_text("\n".join([*lines, '.section .note.GNU-stack,"",@progbits', ""]))
    chosen = compiler(BUILD_MACHINE.glibc_triple)
    run([chosen.cc, "-c", source, "-o", source.with_suffix(".o")], **chosen.environment)
    return source.with_suffix(".o")
