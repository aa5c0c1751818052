"""What `build.py` is made of: environment, engine, demo models and frozen file. Needs the standard library only."""
