"""Builds the file for any Linux, x86-64 and ARM64, on x86-64: compiler, C libraries, Python, engine, bootloader."""
