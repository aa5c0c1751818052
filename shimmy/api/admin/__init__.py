"""PARENT. Routes for operators: which models are loaded, tokenizers, health and metrics."""
