"""PARENT AND WORKER. Hugging Face's and SentencePiece's tokenizers as a vocabulary that llama.cpp understands."""
