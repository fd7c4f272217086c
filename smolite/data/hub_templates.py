"""Chat templates of the hub: the ones that we write, and how a folder's Jinja text is known for one of them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from smolite.data.template import ChatTemplate

CHATML = ChatTemplate(
    system_prefix="<|im_start|>system\n",
    system_suffix="<|im_end|>\n",
    user_prefix="<|im_start|>user\n",
    user_suffix="<|im_end|>\n",
    assistant_prefix="<|im_start|>assistant\n",
    assistant_suffix="<|im_end|>\n",
)
"""ChatML, as SmolLM-Instruct has it."""

SMOLLM2_CHAT = replace(CHATML, default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face")
"""ChatML with the system message of SmolLM2-Instruct, where a dialogue has none of its own."""

_PUBLISHED_TURN = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
_PUBLISHED_OPENING = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_PUBLISHED_SYSTEM = (
    "{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant "
    "named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
)
# As the folders of SmolLM-Instruct and SmolLM2-Instruct have it, with real newlines or with `\n` between the quotes.
_PUBLISHED = {
    "{% for message in messages %}" + _PUBLISHED_TURN + _PUBLISHED_OPENING: CHATML,
    "{% for message in messages %}" + _PUBLISHED_SYSTEM + _PUBLISHED_TURN + _PUBLISHED_OPENING: SMOLLM2_CHAT,
}
_KNOWN = (ChatTemplate(), CHATML, SMOLLM2_CHAT)
_TALK = tuple(
    {"role": role, "content": content}
    for role, content in [
        ("system", "친절하게\n\n답해. <b>{{ 1 }}</b>"),
        ("user", "그는 \"응\" 했어'\\n'"),
        ("assistant", "{% raw %} ㅋㅋㅋ 😀"),
        ("user", "1 + 1?"),
        ("assistant", "2"),
    ]
)
_PROBES = [(_TALK[first:last], last in (2, 4)) for first in (0, 1) for last in (2, 3, 4, 5)]


def known_template(jinja: str, tokens: Mapping[str, str] | None = None) -> ChatTemplate | None:
    """The template that writes dialogues as a Jinja text does, or None where there is none among those that we know.

    With the package `jinja2` it is known by what it renders for a few dialogues, in a sandbox; without, by its text.

    Args:
        jinja: a `chat_template`.
        tokens: names that the text may use, such as `bos_token`.
    """
    texts = {**{each.jinja(): each for each in _KNOWN}, **_PUBLISHED}
    if (known := texts.get(jinja.replace("\\n", "\n")) or texts.get(jinja)) is not None:
        return known
    theirs = _rendered(jinja, tokens or {})
    return next((each for each in _KNOWN if theirs is not None and _rendered(each.jinja(), {}) == theirs), None)


def _rendered(jinja: str, tokens: Mapping[str, str]) -> list[str] | None:
    """What a Jinja text makes of the probes; None where it breaks, or where `jinja2` is not installed."""
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        return None
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    settings: list[dict[str, Any]] = [
        {**tokens, "messages": [dict(turn) for turn in talk], "add_generation_prompt": opening} for talk, opening in _PROBES
    ]
    try:
        template = environment.from_string(jinja)
        return [template.render(**each) for each in settings]
    except (TemplateError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return None
