"""PARENT. From the disk to the published catalog of models, and the names they get."""
