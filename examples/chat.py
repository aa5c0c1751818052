"""A conversation in the terminal, with nothing but Python's standard library: python3 chat.py [MODEL]."""

import json
import os
import sys
import urllib.request

BASE_URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:11435/v1")
HEADERS = {
    "Content-Type": "application/json",
    "Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', 'none')}",
}


def answer(model: str, messages: list[dict[str, str]]) -> str:
    """Print an answer as it comes; returns its text."""
    body = json.dumps({"model": model, "messages": messages, "stream": True}).encode()
    request = urllib.request.Request(f"{BASE_URL}/chat/completions", body, HEADERS)
    text = ""
    with urllib.request.urlopen(request) as response:
        for line in response:
            data = line.decode().removeprefix("data: ").strip()
            if line.startswith(b"data: ") and data != "[DONE]":
                for choice in json.loads(data)["choices"]:
                    piece = choice["delta"].get("content") or ""
                    print(piece, end="", flush=True)
                    text += piece
    print()
    return text


def main() -> None:
    """Answer each line of standard input."""
    model = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct.q4-1"
    messages: list[dict[str, str]] = []
    for question in sys.stdin:
        messages.append({"role": "user", "content": question.strip()})
        messages.append({"role": "assistant", "content": answer(model, messages)})


if __name__ == "__main__":
    main()
