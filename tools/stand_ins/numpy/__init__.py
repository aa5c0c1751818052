"""Stands in for `numpy/__init__.py` in the frozen file: arrays, types and loops over them, and nothing of `numpy.lib`,
`linalg`, `random`, `fft` and `ma`. Who asks for what is left out gets an AttributeError.
"""

# Others take these names from here, some of them while they are imported: the order matters.
# ruff: noqa: F401, F403, I001
import os
import re

from numpy._globals import _CopyMode, _NoValue
from numpy.version import version as __version__
from numpy import _core
from numpy._core import *
from numpy._core.multiarray import packbits, unpackbits
from numpy import dtypes, exceptions

# As numpy does: without huge pages large arrays take twice the time, and Linux before 4.6 was slow with them.
_kernel = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
_core.multiarray._set_madvise_hugepage(_kernel >= (4, 6))
_core.multiarray._multiarray_umath._reload_guard()


class matrix(_core.multiarray.ndarray):  # noqa: N801 - the name in numpy
    """What `ravel`, `diagonal` and `trace` look for, and whoever calls these. Arrays are no matrices here."""
