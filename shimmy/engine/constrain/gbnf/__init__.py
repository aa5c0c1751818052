"""WORKER. Grammars in GBNF, llama.cpp's notation: read, analysed, and written in Lark for llguidance."""
