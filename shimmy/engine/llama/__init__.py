"""WORKER. llama.cpp: binding, model, contexts, tokenizer, samplers."""
