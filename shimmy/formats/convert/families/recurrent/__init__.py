"""PARENT AND WORKER. Families whose layers keep a state beside keys or instead: Mamba-2, short convolutions."""
