"""Read an answer from a running server while it is written, with nothing but the standard library.

    make serve
    python examples/stream.py "Tell me about the sea." [--url http://127.0.0.1:8000]
"""

import argparse
import json
import urllib.request
from collections.abc import Iterator


def stream(url: str, question: str) -> Iterator[str]:
    """The pieces of the answer, as they come."""
    body = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 128, "stream": True}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        for line in response:
            data = line.decode().strip().removeprefix("data: ")
            if data == "[DONE]":
                return
            if data:
                event = json.loads(data)
                if "error" in event:  # what failed after the stream had begun
                    raise RuntimeError(event["error"]["message"])
                yield event["choices"][0]["delta"].get("content", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", nargs="?", default="What is the capital of France?")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    arguments = parser.parse_args()
    for piece in stream(arguments.url, arguments.question):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
