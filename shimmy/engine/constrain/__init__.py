"""WORKER. What a reply has to obey: grammars, JSON Schemas, tool calls, an end to reasoning."""
