"""Stands in for numpy's compiled module in the frozen file, where it lies packed: unpacks it and makes way for it."""

import sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader

from shimmy.engine.llama.unpack_libraries import NUMPY_ARCHIVE, in_memory, part_content

with in_memory("numpy", part_content(NUMPY_ARCHIVE)) as path:
    loader = ExtensionFileLoader(__name__, path)
    spec = spec_from_loader(__name__, loader)
    assert spec is not None
    sys.modules[__name__] = module_from_spec(spec)  # which is what an import of this one finds
    loader.exec_module(sys.modules[__name__])
