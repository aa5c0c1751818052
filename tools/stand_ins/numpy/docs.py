"""Stands in for the modules of numpy that give docstrings to its compiled functions: here nobody reads them."""
