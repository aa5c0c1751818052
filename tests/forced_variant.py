"""The CPU variant that the tests run on: this processor's best one, or what SHIMMY_TEST_CPU_VARIANT forces."""

import os
from typing import Any

from shimmy.engine.cpu_variants import variants

FORCED = os.environ.get("SHIMMY_TEST_CPU_VARIANT") or None


def force() -> None:
    """Let tests that load the engine into their own process see a processor whose best variant is the forced one."""
    if FORCED is None:
        return
    flags, read_flags = dict(variants.VARIANTS)[FORCED], variants.processor_flags

    def processor_flags(*paths: Any, **options: Any) -> frozenset[str] | None:
        return read_flags(*paths, **options) if paths or options else flags

    variants.processor_flags = processor_flags
