"""A conversation to one text, by the checkpoint's own Jinja template.

It knows no token ids: `Tokenizer.encode(text, add_special_tokens=False)` reads what it writes, BOS included.
"""

from __future__ import annotations

import datetime
import functools
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from braid.errors import InvalidRequest, ModelFileError
from braid.llm_core.text.messages import check_messages
from braid.llm_core.text.model_folder import read_json, read_special_tokens
from braid.llm_core.text.render_budget import RenderBudget
from braid.llm_core.text.template_sandbox import TemplateRefusedError, TemplateSandbox

GGUF_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
"""Names that templates use, and the words of GGUF's `tokenizer.ggml.<word>_token_id`."""


class ChatTemplate:
    """A compiled chat template."""

    def __init__(
        self, source: str, special_tokens: Mapping[str, str], *, now: Callable[[], datetime.datetime] | None = None
    ) -> None:
        """Args:
            special_tokens: `bos_token` and its like, as text.
            now: what `strftime_now` reads; None is the local time.
        Raises:
            ModelFileError: the template is not valid Jinja.
        """
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._sandbox = TemplateSandbox()
        self._sandbox.globals["strftime_now"] = functools.partial(_strftime, now or datetime.datetime.now)
        self._sandbox_lock = threading.Lock()
        try:
            self._template = self._sandbox.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise ModelFileError(f"the chat template is not valid Jinja: {error}") from error

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Write a conversation as the model was trained to read it.

        Args:
            messages: OpenAI's; checked here.
            add_generation_prompt: end with the opening of the assistant's turn.
            template_kwargs: further variables of this template, such as `enable_thinking`.
        Raises:
            InvalidRequest: a message is wrong, or the template refuses the conversation.
        """
        variables = {
            "tools": None,
            "documents": None,
            **self._special_tokens,
            **(template_kwargs or {}),
            "messages": check_messages(messages),
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._run(variables)
        except TemplateRefusedError as error:
            raise InvalidRequest(f"the chat template refuses these messages: {error}", param="messages") from None
        except Exception as error:  # the template is a foreign program: whatever it raises ends one request
            raise InvalidRequest(
                f"the chat template fails on these messages: {error or type(error).__name__}", param="messages"
            ) from error

    def _run(self, variables: dict[str, Any]) -> str:
        pieces: list[str] = []
        with self._sandbox_lock:
            self._sandbox.budget = budget = RenderBudget()
            for piece in self._template.generate(variables):
                budget.grow(len(piece))
                pieces.append(piece)
        return "".join(pieces)


def _strftime(now: Callable[[], datetime.datetime], form: str) -> str:
    """The time now. Widths such as `%999999d`, which some C libraries obey, are refused."""
    if len(form) > 200 or re.search(r"%[^a-zA-Z%]*\d", form):
        raise ValueError(f"strftime_now({form[:200]!r}) must be a short format without widths")
    return now().strftime(form)


def from_gguf(metadata: Mapping[str, Any]) -> ChatTemplate | None:
    """The template in a GGUF file's `tokenizer.chat_template`; None where there is none."""
    source = metadata.get("tokenizer.chat_template")
    if source is None:
        return None
    if not isinstance(source, str):
        raise ModelFileError("tokenizer.chat_template must be a string")
    return ChatTemplate(source, _gguf_special_tokens(metadata))


def from_folder(path: Path) -> ChatTemplate | None:
    """The template of a Hugging Face folder; None where there is none.

    It is chat_template.jinja or else, in tokenizer_config.json, `chat_template`: one string, or a list of named ones,
    of which `default` counts.
    """
    source = _folder_source(path)
    return None if source is None else ChatTemplate(source, read_special_tokens(path))


def _folder_source(path: Path) -> str | None:
    try:
        return (path / "chat_template.jinja").read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path / 'chat_template.jinja'} is not readable: {error}") from error
    file = path / "tokenizer_config.json"
    declared = read_json(file).get("chat_template")
    if isinstance(declared, list):
        declared = _default_of(file, declared)
    if declared is not None and not isinstance(declared, str):
        raise ModelFileError(f"{file}: chat_template must be a string or a list of named templates")
    return declared


def _default_of(file: Path, named: list[Any]) -> Any:
    """The template named `default` of a list of `{"name": ..., "template": ...}`."""
    by_name = {entry.get("name"): entry.get("template") for entry in named if isinstance(entry, dict)}
    if "default" not in by_name:
        raise ModelFileError(f"{file}: chat_template has no template named 'default', only {sorted(map(str, by_name))}")
    return by_name["default"]


def _gguf_special_tokens(metadata: Mapping[str, Any]) -> dict[str, str]:
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    ids = {name: metadata.get(f"tokenizer.ggml.{word}_token_id") for name, word in GGUF_TOKENS.items()}
    return {name: tokens[i] for name, i in ids.items() if isinstance(i, int) and 0 <= i < len(tokens)}
