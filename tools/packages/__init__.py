"""Packages that carry the one file: a wheel for pip and uv, a package for Debian. Knows nothing of how it is built."""
