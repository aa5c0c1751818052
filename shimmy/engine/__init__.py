"""The worker's side: everything that touches a model's content. Only `client.py` and `wire.py` run in the parent."""
