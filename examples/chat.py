"""A conversation of two turns in one process; the second turn finds the first in the prefix cache.

    python examples/chat.py
"""

from braid import LLM, SamplingParams

QUESTIONS = ("What is the capital of France?", "What is the capital of Italy?")


def main() -> None:
    sampling = SamplingParams(temperature=0, max_tokens=64)
    messages: list[dict[str, str]] = []
    with LLM("smollm2") as llm:
        for question in QUESTIONS:
            messages.append({"role": "user", "content": question})
            answer = llm.chat(messages, sampling)
            messages.append({"role": "assistant", "content": answer.text})
            usage = answer.usage
            print(f"> {question}\n{answer.text}")
            print(f"({usage.prompt_tokens} prompt tokens, {usage.cached_tokens} of them cached)")


if __name__ == "__main__":
    main()
