"""PARENT. The fields that all dialects share: what each may be, and what becomes of it."""
