"""PARENT. GPUs: which devices this machine has, and why one is not used."""
