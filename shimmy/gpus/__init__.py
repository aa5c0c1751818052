"""PARENT. GPUs: which devices this machine has, why one is not used, and what a model gets."""
