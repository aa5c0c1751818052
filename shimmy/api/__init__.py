"""The HTTP side: requests of a dialect in, replies of that dialect out. JSON dicts stop here."""
