"""PARENT. Commands for several machines that compute one model."""
