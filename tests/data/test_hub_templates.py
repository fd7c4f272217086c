"""The referee is `apply_chat_template` of transformers with the Jinja texts that the hub's folders have."""

import dataclasses
import sys

import pytest
from tiny_json import ROLES, SMOLLM, SMOLLM2, trained
from transformers import PreTrainedTokenizerFast

from smolite.data.hub_templates import CHATML, SMOLLM2_CHAT, known_template
from smolite.data.template import ChatTemplate, Conversation, Message, fit_context
from smolite.text.json_tokenizer import JsonTokenizer

TEMPLATES = pytest.mark.parametrize(
    ("jinja", "template"), [(SMOLLM2, SMOLLM2_CHAT), (SMOLLM, CHATML)], ids=["smollm2", "smollm"]
)
TURNS = ["안녕하세요!", "오늘 날씨가\n좋네요 <|im_end|>", "1 + 12 = ?", "def f(x):\n\treturn 13", "끝"]


@pytest.fixture(scope="module")
def tokenizer():
    return JsonTokenizer(trained(), roles=ROLES)


@pytest.fixture
def hub(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(trained())
    return PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), split_special_tokens=False)


def talk(count, *, system):
    first = [Message("system", "친절하게 답해요.")] if system else []
    return [*first, *(Message(("user", "assistant")[place % 2], text) for place, text in enumerate(TURNS[:count]))]


def plain(messages):
    """Turns without a marker in the text, which transformers would take for the marker itself."""
    return [dataclasses.replace(message, content=message.content.replace("<|im_end|>", "")) for message in messages]


@TEMPLATES
@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_ids_are_those_of_transformers(jinja, template, system, count, tokenizer, hub):
    messages = [dataclasses.replace(each, content=each.content.strip()) for each in plain(talk(count, system=system))]
    dicts = [dataclasses.asdict(message) for message in messages]
    settings = {"chat_template": jinja, "return_dict": False}
    assert template.render(Conversation(tuple(messages)), tokenizer)[0] == hub.apply_chat_template(dicts, **settings)
    if count % 2:
        prompt = hub.apply_chat_template(dicts, add_generation_prompt=True, **settings)
        assert template.prompt(messages, tokenizer) == prompt


@TEMPLATES
def test_our_jinja_renders_what_theirs_does(jinja, template, hub):
    for system in (False, True):
        dicts = [dataclasses.asdict(message) for message in plain(talk(3, system=system))]
        texts = [hub.apply_chat_template(dicts, chat_template=each, tokenize=False) for each in (jinja, template.jinja())]
        assert texts[0].replace(" <|im_end|>", "<|im_end|>") == texts[1]


def test_a_dialogue_without_a_system_turn_begins_with_the_default_one(tokenizer):
    conversation = Conversation(tuple(talk(2, system=False)))
    ids, mask = SMOLLM2_CHAT.render(conversation, tokenizer)
    system = Message("system", SMOLLM2_CHAT.default_system)
    assert (ids, mask) == CHATML.render(Conversation((system, *conversation.messages)), tokenizer)
    trained_ids = [index for index, learnt in zip(ids, mask, strict=True) if learnt]
    assert trained_ids == [*tokenizer.encode(TURNS[1]), tokenizer.end_id], "the answer and its end, not the newline after it"
    assert ids.count(tokenizer.end_id) == 3, "a typed marker stays text"


def test_cut_dialogues_are_counted_though_a_newline_follows_the_end(tokenizer):
    conversation = Conversation(tuple(talk(4, system=False)))
    length = len(CHATML.render(conversation, tokenizer)[0])
    for context_length, case in [(length - 2, "whole"), (length - 3, "shortened"), (length * 9, "whole")]:
        fitted = fit_context([conversation], tokenizer, context_length=context_length, template=CHATML)
        assert fitted.counts[case] == 1 and fitted.examples[0][0][-1] == tokenizer.end_id
    unanswered = Conversation(tuple(talk(3, system=False)))
    assert fit_context([unanswered], tokenizer, context_length=999, template=CHATML).counts["shortened"] == 1


def test_templates_in_json():
    assert "default_system" not in CHATML.to_dict()
    for template in (CHATML, SMOLLM2_CHAT):
        assert ChatTemplate.from_dict(template.to_dict()) == template
        assert template.markers == ("<|im_end|>", "<|im_start|>") and template.stop == "<|im_end|>"
    odd = ChatTemplate(default_system="Write <b>bold</b>.")
    assert "<b>" not in odd.markers


@TEMPLATES
@pytest.mark.parametrize("package", ["with jinja2", "without"])
def test_a_published_text_is_known(jinja, template, package, monkeypatch):
    if package == "without":
        monkeypatch.setitem(sys.modules, "jinja2", None)
    for text in (jinja, jinja.replace("\n", "\\n"), template.jinja()):
        assert known_template(text) == template
    assert known_template(ChatTemplate().jinja()) == ChatTemplate()


def test_another_text_is_known_by_what_it_renders(monkeypatch):
    """As transformers' own documentation writes ChatML."""
    text = """
    {%- for message in messages %}
        {{- '<|im_start|>' + message['role'] + '\\n' }}
        {{- message['content'] + im_end + '\\n' }}
    {%- endfor %}
    {%- if add_generation_prompt %}
        {{- '<|im_start|>assistant\\n' }}
    {%- endif %}"""
    assert known_template(text, {"im_end": "<|im_end|>"}) == CHATML
    assert known_template(text) is None
    assert known_template(SMOLLM2.replace("\n' }}{% endif %}{{'", "\n' }}{% endif %}{{ '")) == SMOLLM2_CHAT
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert known_template(text, {"im_end": "<|im_end|>"}) is None


@pytest.mark.parametrize(
    "text",
    [
        "{{ messages }}",
        "{% for",
        "{{ raise_exception('no') }}",
        "{{ 1 / 0 }}",
        "{{ ''.__class__.__mro__ }}",
        SMOLLM.replace("assistant\n", "bot\n"),
        SMOLLM2.replace("SmolLM,", "Llama,"),
    ],
)
def test_a_text_that_says_something_else_is_not_known(text):
    assert known_template(text) is None
