"""Shimmy serves language models over the OpenAI API from one executable file."""

__version__ = "0.1.0"
