"""PARENT. HTTP: a dialect's requests in, its replies out. JSON dictionaries stop here."""
