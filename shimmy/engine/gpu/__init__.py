"""WORKER. The engine's backends for GPUs: their libraries, and the devices that they have. Imported only for a model
that devices compute."""
