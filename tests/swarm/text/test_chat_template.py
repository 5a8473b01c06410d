import json
from datetime import UTC, datetime

import pytest
from novels_text import novels_files, novels_manifest, novels_model

from shoal.swarm.errors import UsageError
from shoal.swarm.text.chat_template import ChatTemplate, read_template
from shoal.swarm.text.template_sandbox import compiled
from shoal.swarm.text.tokenizer import TextModel

CHATML = (
    "{%- for message in messages %}\n"
    "    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
HI = [{"role": "user", "content": "hi"}]


def test_a_models_own_template_is_rendered_as_transformers_renders_it() -> None:
    template = ChatTemplate(CHATML)
    assert template.render(HI) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert template.render(HI, add_generation_prompt=False) == "<|im_start|>user\nhi<|im_end|>\n"


def test_blocks_are_trimmed_and_special_tokens_json_and_options_are_there() -> None:
    source = """{{ bos_token }}
{% for message in messages %}
    {% generation %}
{{ message | tojson }}
    {% endgeneration %}
    {% if loop.last %}{% break %}{% endif %}
{% endfor %}
{{ mood }}"""
    text = ChatTemplate(source, None, {"bos_token": "<s>"}).render(
        [{"role": "user", "content": "<é>"}], options={"mood": "calm", "messages": "mine"}
    )
    assert text == '<s>\n{"role": "user", "content": "<é>"}\ncalm'


def test_the_clock_is_the_callers() -> None:
    template = compiled("{{ strftime_now('%d %b %Y') }}", lambda: datetime(2026, 3, 1, tzinfo=UTC))
    assert template.render() == "01 Mar 2026"


def test_a_list_of_templates_has_one_for_tools() -> None:
    entry = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools[0].name }}"}]
    template = read_template({"chat_template": entry}, None, {})
    assert template.render(HI) == "plain"
    assert template.render(HI, tools=[{"name": "clock"}]) == "clock"


def test_a_jinja_file_goes_before_the_configuration() -> None:
    assert read_template({"chat_template": "old"}, "new", {}).render(HI) == "new"


def test_text_parts_become_one_text_and_other_parts_are_refused() -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert template.render([{"role": "user", "content": parts}]) == "one\ntwo"
    with pytest.raises(UsageError, match="image_url"):
        template.render([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])


@pytest.mark.parametrize("messages", [[], [{"content": "no role"}], [{"role": "user", "content": 3}], [{"role": 1}]])
def test_messages_of_another_shape_are_refused(messages: list[dict[str, object]]) -> None:
    with pytest.raises(UsageError):
        ChatTemplate(CHATML).render(messages)


def test_what_a_template_raises_reaches_the_caller_in_its_own_words() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UsageError, match="roles must alternate"):
        template.render(HI)


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ namespace.__init__.__globals__['os'] }}",
        "{{ 'a' * 99999999999 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{% set x = 'a' * 1000000 %}{% for i in range(99999) %}{{ x }}{% endfor %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{% for %}",
        "{{ messages[0].content.format_map.__self__.nothing.here }}",
        "{% include 'file' %}",
    ],
)
def test_a_hostile_or_broken_template_is_an_error_of_one_line(attack: str) -> None:
    with pytest.raises(UsageError) as caught:
        ChatTemplate(attack).render(HI)
    assert "\n" not in str(caught.value)


def test_a_model_without_template_continues_the_contents() -> None:
    model = novels_model()
    messages = [{"role": "system", "content": "A tale."}, {"role": "user", "content": "It was"}]
    assert model.template.plain
    assert model.apply_chat_template(messages) == model.encode("A tale.\n\nIt was")


def test_a_template_writes_its_own_bos_and_a_text_gets_the_tokenizers() -> None:
    config = {"add_bos_token": True, "bos_token": {"content": "<|endoftext|>"}, "chat_template": "{{ bos_token }}hi"}
    files = novels_files() | {"tokenizer_config.json": json.dumps(config).encode()}
    model = TextModel.from_files(files, novels_manifest())
    plain = novels_model()
    assert model.encode("hi") == (0, *plain.encode("hi"))
    assert model.apply_chat_template(HI) == (0, *plain.encode("hi"))
