"""Where the template of a model runs: a stranger's program, so it sees plain data and cannot build huge values.

The environment offers what transformers offers (`trim_blocks`, `lstrip_blocks`, loop controls, `tojson`,
`raise_exception`, `strftime_now`, the `generation` tag), so a model's own template renders the same text.
source: transformers, utils/chat_template_utils.py
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_VALUE = 1 << 20  # characters or items that one multiplication may make


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's words for training; here it is its own body."""

    tags = {"generation"}  # noqa: RUF012 (the base class declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: object, right: object) -> object:
        if operator == "**" and not (_small(left, MAX_VALUE) and _small(right, 64)):
            raise jinja2.TemplateError("the template computes a number that is too large")
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if not isinstance(value, str | list | tuple) or not isinstance(times, int):
                    continue
                if len(value) * times > MAX_VALUE:
                    raise jinja2.TemplateError("the template repeats a text too often")
        return super().call_binop(context, operator, left, right)


def _small(value: object, limit: int) -> bool:
    return isinstance(value, int | float) and abs(value) <= limit


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML characters; a model wants plain JSON."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _local_time() -> datetime:
    return datetime.now(UTC).astimezone()


def compiled(source: str, clock: Callable[[], datetime] = _local_time) -> jinja2.Template:
    """raises: jinja2.TemplateSyntaxError"""
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: clock().strftime(form)
    return environment.from_string(source)
