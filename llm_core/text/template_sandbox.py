"""The Jinja environment that chat templates run in."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from jinja2 import ext, nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class TemplateRefusedError(Exception):
    """A template called `raise_exception`: the conversation does not suit it."""


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Jinja as chat templates expect it: trimmed blocks, `break`, `raise_exception`, plain `tojson`."""

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols, GenerationBlock])
        self.filters["tojson"] = tojson
        self.globals["raise_exception"] = raise_exception


class GenerationBlock(ext.Extension):
    """`{% generation %}` marks what the model wrote, for training; here its body is simply its body."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def raise_exception(message: str) -> NoReturn:
    raise TemplateRefusedError(message)


def tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None,
    separators: tuple[str, str] | None = None, sort_keys: bool = False,
) -> str:
    """JSON as the model was trained on it: Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
