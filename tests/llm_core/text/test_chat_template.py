"""Chat templates: against `transformers`, the messages they take, and templates that mean harm."""

from __future__ import annotations

import datetime
import json
import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models
from transformers import PreTrainedTokenizerFast

from braid.errors import BraidError, InvalidRequest, ModelFileError
from braid.llm_core.text import chat_template
from braid.llm_core.text.chat_template import ChatTemplate

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Bonjour «ça va» ? <b> & 'x'"},
    {"role": "assistant", "content": "Oui.\n"},
    {"role": "user", "content": "漢字 🙂"},
]
TEMPLATES = {
    "header": """{{- bos_token }}
{%- for message in messages %}
    {%- set opening = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' %}
    {{- opening + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}""",
    "turns": """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first = messages[0]['content'] + '\n\n' -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set first = '' -%}
    {%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' ~ role ~ '\n' ~ (first if loop.first) }}
    {{- message['content'] | trim }}{{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}""",
    "features": """{% set ns = namespace(seen=0, last='') %}
{% for message in messages %}
    {% if message.role == 'system' %}{% continue %}{% endif %}
    {% if loop.index > 3 %}{% break %}{% endif %}
    {% set ns.seen = ns.seen + 1 %}
    {% set ns.last = message.content %}
    {% generation %}
{{ loop.index }}/{{ loop.length }} {{ message | tojson }} {{ message | tojson(indent=2) }} {{ message.content[::-1] }}
    {% endgeneration %}
{% endfor %}
{% macro shout(text, times=2) %}{{ text.upper() * times }}{% endmacro %}
{{ shout('hi') }} {{ ns.seen }} {{ ns.last }} {{ '%s-%d' % ('a', 3) }} {{ '{}{}'.format(1, 'b') }} {{ [1, 'é'] }}
{{ [1, 2] | join(', ') }} {{ messages | map(attribute='role') | list }} {{ (1, 2) }} {{ none }} {{ tools is none }}
{{ dict(a=1).items() | list }} {{ 'a\nb' | indent(3) }} {{ 'x'.replace('x', 'yy').center(8) }} {{ 2 ** 8 }}
{% filter upper %}quiet{% endfilter %} {% set block %}{{ 'in' }}{{ 'side' }}{% endset %}{{ block }}""",
}


@pytest.fixture(scope="module")
def reference() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=Backend(models.BPE({"<s>": 0, "</s>": 1}, [])), bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_templates_write_what_transformers_writes(
    reference: PreTrainedTokenizerFast, name: str, add_generation_prompt: bool
) -> None:
    expected = reference.apply_chat_template(
        CONVERSATION, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=add_generation_prompt
    )
    template = ChatTemplate(TEMPLATES[name], {"bos_token": "<s>", "eos_token": "</s>"})
    assert template.render(CONVERSATION, add_generation_prompt=add_generation_prompt) == expected


def test_the_embedded_template_writes_chatml_with_its_own_system_prompt(smollm2_template: ChatTemplate) -> None:
    assert smollm2_template.render([{"role": "user", "content": "Hi"}]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_system_prompt_takes_the_place_of_the_models_own(smollm2_template: ChatTemplate) -> None:
    for role in ("system", "developer"):
        messages = [{"role": role, "content": "Be brief."}, {"role": "user", "content": "Hi"}]
        assert smollm2_template.render(messages, add_generation_prompt=False) == (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        )


def test_text_parts_are_joined(smollm2_template: ChatTemplate) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert "<|im_start|>user\nHello<|im_end|>" in smollm2_template.render([{"role": "user", "content": parts}])


IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
HI = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("messages", "code", "param"),
    [
        ("Hi", "invalid_value", "messages"),
        (None, "invalid_value", "messages"),
        ([], "invalid_value", "messages"),
        (["Hi"], "invalid_value", "messages.0"),
        ([HI, {"content": "Hi"}], "missing_required_parameter", "messages.1.role"),
        ([{"role": "robot", "content": "Hi"}], "invalid_value", "messages.0.role"),
        ([{"role": ["user"], "content": "Hi"}], "invalid_value", "messages.0.role"),
        ([{"role": "user"}], "missing_required_parameter", "messages.0.content"),
        ([{"role": "user", "content": None}], "invalid_value", "messages.0.content"),
        ([{"role": "user", "content": 3}], "invalid_value", "messages.0.content"),
        ([{"role": "user", "content": []}], "invalid_value", "messages.0.content"),
        ([HI, {"role": "user", "content": ["Hi"]}], "invalid_value", "messages.1.content.0"),
        ([{"role": "user", "content": [{"text": "Hi"}]}], "missing_required_parameter", "messages.0.content.0.type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "missing_required_parameter", "messages.0.content.0.text"),
        ([{"role": "user", "content": [{"type": "text", "text": 1}]}], "invalid_value", "messages.0.content.0.text"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "Hi"}, IMAGE]}],
            "unsupported_parameter", "messages.0.content.1.type",
        ),
        ([{"role": "assistant", "content": "", "tool_calls": [{}]}], "unsupported_parameter", "messages.0.tool_calls"),
        ([{"role": "user", "content": "Hi", "name": 7}], "invalid_value", "messages.0.name"),
    ],
)  # fmt: skip
def test_wrong_messages_are_refused_at_their_place(
    smollm2_template: ChatTemplate, messages: Any, code: str, param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        smollm2_template.render(messages)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert param.split(".")[-1] in caught.value.message


def test_a_templates_own_refusal_is_the_requests_error() -> None:
    template = ChatTemplate(TEMPLATES["turns"], {"bos_token": "<s>"})
    with pytest.raises(InvalidRequest, match="must alternate") as caught:
        template.render([HI, HI])
    assert caught.value.param == "messages"


def test_template_variables_reach_the_template_but_cannot_replace_the_messages() -> None:
    template = ChatTemplate("{{ enable_thinking }} {{ messages[0].content }}", {})
    assert template.render([HI], template_kwargs={"enable_thinking": False, "messages": []}) == "False Hi"


def test_the_clock_is_the_one_given() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", {}, now=lambda: datetime.datetime(2024, 7, 26))
    assert template.render([HI]) == "26 Jul 2024"


HOSTILE = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops without calls": "{% set r = range(9999) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a tree of macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a long output": "{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
    "times": "{{ 'x' * 10 ** 10 }}",
    "list times": "{{ [1] * 10 ** 10 }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "doubling by plus": "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "doubling by tilde": "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "doubling by block": "{% set n = namespace(s='x') %}{% for i in range(60) %}"
    "{% set b %}{{ n.s }}{{ n.s }}{% endset %}{% set n.s = b %}{% endfor %}",
    "doubling by list": "{% set n = namespace(s=['x']) %}{% for i in range(60) %}"
    "{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}",
    "doubling in json": "{% set n = namespace(s=['x']) %}{% for i in range(60) %}"
    "{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s | tojson }}",
    "doubling in a string": "{% set n = namespace(s=['x']) %}{% for i in range(60) %}"
    "{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s | string }}",
    "replace": "{% set s = 'x' * 99999 %}{{ s.replace('x', s) }}",
    "replace filter": "{% set s = 'x' * 99999 %}{{ s | replace('x', s) }}",
    "join": "{% set s = 'x' * 99999 %}{{ s.join(range(9999) | map('string')) }}",
    "join filter": "{{ range(9999) | join('x' * 99999) }}",
    "center": "{{ 'x'.center(10 ** 10) }}",
    "center filter": "{{ 'x' | center(10 ** 10) }}",
    "mapped center": "{{ ['x'] | map('center', 10 ** 10) | list }}",
    "indent": "{{ 'x\nx' | indent(10 ** 10) }}",
    "percent width": "{{ '%10000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (10 ** 10, 1) }}",
    "format width": "{{ '{:10000000000}'.format(1) }}",
    "format argument width": "{{ '{:{}}'.format(1, 10 ** 10) }}",
    "format filter": "{{ '%10000000000d' | format(1) }}",
    "batch": "{{ [1] | batch(10 ** 10, 'x') | list }}",
    "strftime width": "{{ strftime_now('%9999999999d') }}",
    "a class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a namespace's class": "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "globals": "{{ raise_exception.__globals__ }}{{ cycler.__init__.__globals__.os }}",
    "a file": "{% include '/etc/passwd' %}",
    "a changed message": "{{ messages.append(1) }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_ends_soon_with_an_error(name: str) -> None:
    start = time.thread_time()
    with pytest.raises(BraidError) as caught:
        print(ChatTemplate(HOSTILE[name], {}).render([HI])[:500])
    assert caught.value.status == 400
    assert time.thread_time() - start < 3


def test_a_long_conversation_is_within_the_budget(smollm2_template: ChatTemplate) -> None:
    messages = [{"role": role, "content": "x" * 200} for _ in range(2500) for role in ("user", "assistant")]
    assert len(smollm2_template.render(messages)) > 1_000_000


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{ ", "{% frobnicate %}", "{{ x | no_such_filter }}", "{{" + "(" * 9999 + ")" * 9999 + "}}"]
)
def test_a_broken_template_is_a_broken_file(source: str) -> None:
    with pytest.raises(ModelFileError, match="chat template is not valid Jinja"):
        ChatTemplate(source, {})


def test_a_gguf_without_a_template_has_none() -> None:
    assert chat_template.from_gguf({}) is None
    with pytest.raises(ModelFileError, match=r"tokenizer\.chat_template must be a string"):
        chat_template.from_gguf({"tokenizer.chat_template": 3})


def test_a_gguf_template_knows_the_files_special_tokens() -> None:
    metadata = {
        "tokenizer.chat_template": "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}",
        "tokenizer.ggml.tokens": ["<a>", "<b>"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
    }
    template = chat_template.from_gguf(metadata)
    assert template is not None
    assert template.render([HI]) == "<b>|<a>|"


def write(folder: Path, **files: Any) -> Path:
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "declared",
    ["{{ bos_token }}é", [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "{{ bos_token }}é"}]],
)
def test_a_folders_template_is_a_string_or_the_default_of_several(tmp_path: Path, declared: Any) -> None:
    folder = write(tmp_path, tokenizer_config={"chat_template": declared, "bos_token": {"content": "<s>"}})
    template = chat_template.from_folder(folder)
    assert template is not None
    assert template.render([HI]) == "<s>é"


def test_a_folders_own_template_file_counts_first(tmp_path: Path) -> None:
    write(tmp_path, tokenizer_config={"chat_template": "old"}, special_tokens_map={"eos_token": "</s>"})
    (tmp_path / "chat_template.jinja").write_text("{{ eos_token }}new", encoding="utf-8")
    template = chat_template.from_folder(tmp_path)
    assert template is not None
    assert template.render([HI]) == "</s>new"


def test_a_folder_without_a_template_has_none(tmp_path: Path) -> None:
    assert chat_template.from_folder(tmp_path) is None
    assert chat_template.from_folder(write(tmp_path, tokenizer_config={"bos_token": None})) is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"chat_template": 3}, "chat_template must be a string or a list"),
        ({"chat_template": [{"name": "rag", "template": "x"}]}, "no template named 'default', only .*rag"),
        ({"chat_template": "x", "bos_token": 3}, "bos_token=3 must be a string"),
        ([], "must hold a JSON object, not list"),
    ],
)
def test_a_broken_folder_is_refused(tmp_path: Path, config: Any, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        chat_template.from_folder(write(tmp_path, tokenizer_config=config))
