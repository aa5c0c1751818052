"""Tests of what people install, copy and start: packages, units, images, configurations."""
