"""The Jinja environment that chat templates run in.

A template is a program out of a model file. It may not reach Python's insides or change what it is given (Jinja's
immutable sandbox), and it may not run for ever or fill the memory: each loop step and call asks `RenderBudget`, and so
does each operation that can multiply a text, before it is done.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

import jinja2
from jinja2 import ext, nodes
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from braid.llm_core.text.render_budget import RenderBudget, call_size, expanded_size, operation_size

MEASURED_FILTERS = (
    "batch", "center", "format", "indent", "join", "list", "pprint", "replace", "slice", "string", "sum", "tojson",
    "urlencode", "wordwrap", "xmlattr",
)
MEASURED_METHODS = (
    "center", "expandtabs", "format", "format_map", "join", "ljust", "replace", "rjust", "translate", "zfill",
)


class TemplateRefusedError(Exception):
    """A template called `raise_exception`: the conversation does not suit it."""


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Jinja as chat templates expect it: trimmed blocks, `break`, `raise_exception`, plain `tojson`.

    It serves one rendering at a time: the caller sets `budget` before each.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[ext.loopcontrols, GenerationBlock],
            optimized=False,  # constants would be computed while compiling, unmeasured
            finalize=_measured_output,
        )
        self.budget = RenderBudget()
        del self.globals["lipsum"]
        self.globals.update(raise_exception=raise_exception, namespace=TemplateNamespace, dict=_new_dict)
        self.filters["tojson"] = tojson
        for name in MEASURED_FILTERS:
            self.filters[name] = self._measured(name, self.filters[name])
        self.filters["counted"] = self._counted
        self.filters["concatenated"] = self._concatenated

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.budget.grow(operation_size(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.budget.tick()
        method = getattr(function, "__wrapped__", function)  # Jinja wraps str.format
        subject, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(subject, str) and name in MEASURED_METHODS:
            if name == "join":  # the list is what is multiplied: measure it as the filter does
                args = (list(args[0]),)
                self.budget.grow(call_size("join", args[0], [subject]))
            else:
                self.budget.grow(call_size(name, subject, [*args, *kwargs.values()]))
        return super().call(context, function, *args, **kwargs)

    def concat(self, parts: Iterable[str]) -> str:
        """Joins the output of a block or macro."""
        pieces = list(parts)
        self.budget.grow(sum(map(len, pieces)))
        return "".join(pieces)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = _Measures().visit(super()._parse(source, name, filename))
        template.set_environment(self)
        return template

    def _measured(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that asks the budget first."""
        at = 1 if hasattr(function, "jinja_pass_arg") else 0  # the subject stands behind the environment

        @functools.wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            subject = list(args[at]) if name in ("join", "list", "sum") else args[at]
            self.budget.grow(call_size(name, subject, [*args[at + 1 :], *kwargs.values()]))
            return function(*args[:at], subject, *args[at + 1 :], **kwargs)

        return measured

    def _counted(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.budget.tick()
            yield value

    def _concatenated(self, values: list[Any]) -> str:
        self.budget.grow(expanded_size(values))
        return "".join(map(str, values))


class _Measures(NodeTransformer):
    """Puts the budget in front of what Jinja lets nobody intercept: loops and `~`."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "counted")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "concatenated")


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    assert isinstance(node, nodes.Expr)
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


@jinja2.pass_context
def _measured_output(context: Context, value: Any) -> Any:
    if isinstance(value, list | tuple | dict):
        assert isinstance(context.environment, TemplateSandbox)
        context.environment.budget.grow(expanded_size(value))
    return value


class GenerationBlock(ext.Extension):
    """`{% generation %}` marks what the model wrote, for training; here its body is simply its body."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateNamespace(Namespace):
    """Jinja's `namespace` without names that begin with `_`, which would reach the object itself."""

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        values = dict(*args, **kwargs)
        for name in values:
            _check_name(name)
        super().__init__(values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: str) -> None:
    if name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace may not hold {name!r}: names may not begin with '_'")


def _new_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """`dict(...)` without the class, whose methods could change what the sandbox keeps constant."""
    return dict(*args, **kwargs)


def raise_exception(message: str) -> NoReturn:
    raise TemplateRefusedError(message)


def tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None,
    separators: tuple[str, str] | None = None, sort_keys: bool = False,
) -> str:
    """JSON as the model was trained on it: Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
