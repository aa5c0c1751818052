"""A record from free text, by a JSON Schema: python3 record.py "Ada was born in 1815". Needs `pip install openai`."""

import json
import os
import sys

from openai import OpenAI

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "year_of_birth": {"type": "integer", "minimum": 1000, "maximum": 2100},
    },
    "required": ["name", "year_of_birth"],
    "additionalProperties": False,
}

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:11435/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
reply = client.chat.completions.create(
    model=sys.argv[2] if len(sys.argv) > 2 else "smollm2-135m-instruct.q4-1",
    messages=[{"role": "user", "content": f"Who is this about, and when was that person born? {sys.argv[1]}"}],
    response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}},
)
print(json.dumps(json.loads(reply.choices[0].message.content), indent=2))
