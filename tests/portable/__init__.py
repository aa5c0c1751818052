"""Tests of tools/portable, as far as they need neither its compiler nor the files that it makes."""
