"""PARENT. OpenAI's Responses."""
