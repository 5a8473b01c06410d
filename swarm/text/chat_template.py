"""Messages to the text that a model was trained to continue."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from shoal.swarm.errors import UsageError

MAX_RENDERED = 16 << 20  # characters

Message = Mapping[str, Any]
"""`{"role": "user", "content": "..."}`; content may be a list of `{"type": "text", "text": "..."}` parts."""


class _NamedTemplate(msgspec.Struct):
    name: str
    template: str


class ChatTemplate:
    """A model's own template, or the plain fallback of a completion model.

    The fallback joins the contents with blank lines and names no roles, so that the model continues the text.
    """

    def __init__(
        self, default: str | None, tools: str | None = None, special_tokens: Mapping[str, str] | None = None
    ) -> None:
        self._default = default
        self._tools = tools or default
        self._special_tokens = dict(special_tokens or {})
        self._compiled: dict[str, Any] = {}

    @property
    def plain(self) -> bool:
        """Whether the model brought no template."""
        return self._default is None

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """options: further variables of the template, e.g. enable_thinking.

        raises: UsageError when the messages do not fit the template (in its own words), or it is broken
        """
        chat = [_flat(message) for message in messages]
        if not chat:
            raise UsageError("messages must not be empty")
        source = self._tools if tools else self._default
        if source is None:
            return "\n\n".join(text for message in chat if (text := message.get("content")))
        return self._run(
            source,
            {
                **(options or {}),
                **self._special_tokens,
                "messages": chat,
                "tools": [_plain(tool) for tool in tools] if tools else None,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
            },
        )

    def _run(self, source: str, variables: dict[str, Any]) -> str:
        import jinja2  # a fifth of a second, and a completion model never needs it

        from .template_sandbox import compiled

        parts: list[str] = []
        size = 0
        try:
            template = self._compiled.get(source)
            if template is None:
                template = self._compiled[source] = compiled(source)
            for part in template.generate(variables):
                size += len(part)
                if size > MAX_RENDERED:
                    raise UsageError("the model's chat template writes without end")
                parts.append(part)
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
            ArithmeticError,
        ) as error:
            raise UsageError(f"the messages do not fit the model's chat template: {error}") from error
        except (RecursionError, MemoryError) as error:
            raise UsageError("the model's chat template is broken: it never ends") from error
        return "".join(parts)


def read_template(config: Mapping[str, Any], jinja_file: str | None, special_tokens: Mapping[str, str]) -> ChatTemplate:
    """From chat_template.jinja or, without one, tokenizer_config.json: a string, or a list of named ones.

    raises: msgspec.ValidationError for another shape
    """
    entry = config.get("chat_template")
    if jinja_file is not None:
        return ChatTemplate(jinja_file, None, special_tokens)
    if entry is None or isinstance(entry, str):
        return ChatTemplate(entry, None, special_tokens)
    named = {each.name: each.template for each in msgspec.convert(entry, list[_NamedTemplate])}
    return ChatTemplate(named.get("default"), named.get("tool_use"), special_tokens)


def _flat(message: Message) -> dict[str, Any]:
    """Plain data, with text parts joined: most templates expect a string."""
    plain: dict[str, Any] = _plain(message)
    role, content = plain.get("role"), plain.get("content")
    if not isinstance(role, str):
        raise UsageError("every message needs a role")
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or not isinstance(part.get("text"), str):
                kind = part.get("type") if isinstance(part, dict) else type(part).__name__
                raise UsageError(f"this model reads text only, not a part of type {kind!r}")
        plain["content"] = "\n".join(part["text"] for part in content)
    elif content is not None and not isinstance(content, str):
        raise UsageError(f"the content of a message must be a string or a list of parts, not {type(content).__name__}")
    return plain


def _plain(value: object) -> Any:  # noqa: ANN401 (JSON)
    """Rebuilt from exact JSON types: an object's methods are not the template's business."""
    match value:
        case None | bool():
            return value
        case str():
            return str(value)
        case int():
            return int(value)
        case float():
            return float(value)
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            raise UsageError(f"messages and tools are plain JSON, not {type(value).__name__}")
