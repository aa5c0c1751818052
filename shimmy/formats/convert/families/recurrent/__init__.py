"""PARENT AND WORKER. Families whose layers keep a state: Mamba-2, short convolutions, delta attention."""
