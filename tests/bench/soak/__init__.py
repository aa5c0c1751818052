"""A server under random mixes of everything for as long as it is told, and what has to hold all the while."""
