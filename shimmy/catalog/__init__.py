"""PARENT. From the disk to the published catalog of models: discovery, changes, names."""
