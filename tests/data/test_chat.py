"""Referees: ids written by hand for a byte tokenizer, and `apply_chat_template` of transformers."""

import dataclasses

import pytest

from smolite.data.packing import Example
from smolite.data.template import ChatTemplate, Conversation, Message, fit_context, read_conversations, show

START, END, SEP, FIRST = 2, 3, 4, 5
MARKERS = {"<pad>": 0, "<start>": START, "<end>": END, "<sep>": SEP}


class ByteTokenizer:
    """One id for each byte, after the markers."""

    vocab_size = FIRST + 256
    pad_id, unk_id, start_id, end_id, sep_id = 0, 1, START, END, SEP

    def __init__(self, markers=MARKERS):
        self.markers = dict(markers)

    def encode(self, text):
        return [FIRST + byte for byte in text.encode()]

    def pieces(self, ids):
        names = {number: name for name, number in self.markers.items()}
        return [names.get(number) or chr(number - FIRST) for number in ids]


def said(text):
    return ByteTokenizer().encode(text)


def talk(*turns, system=None):
    roles = ("user", "assistant")
    first = [Message("system", system)] if system is not None else []
    return Conversation((*first, *(Message(roles[place % 2], text) for place, text in enumerate(turns))))


TEMPLATE, BYTES = ChatTemplate(), ByteTokenizer()


def test_one_exchange():
    ids, mask = TEMPLATE.render(talk("hi", "yo!"), BYTES)
    assert ids == [START, *said("hi"), SEP, *said("yo!"), END]
    assert mask == [0, 0, 0, 0, 1, 1, 1, 1]


def test_the_example_of_the_docstring():
    words = ByteTokenizer()
    words.encode = {"hi": [7, 8], "yo": [9], "": []}.get
    assert TEMPLATE.render(talk("hi", "yo"), words) == ([2, 7, 8, 4, 9, 3], [0, 0, 0, 0, 1, 1])
    assert TEMPLATE.prompt([Message("user", "hi")], words) == [2, 7, 8, 4]
    fitted = fit_context([talk("hi", "yo", "hi", "yo")], words, context_length=8)
    assert fitted.examples == [Example([2, 7, 8, 4, 9, 3], [0, 0, 0, 0, 1, 1])]


def test_system_and_further_turns():
    ids, mask = TEMPLATE.render(talk("a", "b", "c", "d", system="s"), BYTES)
    a, b, c, d, s = (said(letter)[0] for letter in "abcds")
    assert ids == [START, s, END, START, a, SEP, b, END, START, c, SEP, d, END]
    assert mask == [0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1]


def test_a_marker_that_someone_typed_stays_text_and_no_second_end():
    ids, _ = TEMPLATE.render(talk("<end><sep>", "ok<end>"), BYTES)
    assert ids == [START, *said("<end><sep>"), SEP, *said("ok<end>"), END]
    assert [ids.count(marker) for marker in (START, SEP, END)] == [1, 1, 1]


def test_outer_whitespace_is_no_part_of_a_turn():
    assert TEMPLATE.render(talk(" hi\n", "\tyo "), BYTES) == TEMPLATE.render(talk("hi", "yo"), BYTES)


def test_a_prompt_is_the_beginning_of_the_rendered_conversation():
    conversation = talk("a", "b", "c", "d", system="s")
    ids, mask = TEMPLATE.render(conversation, BYTES)
    prompt = TEMPLATE.prompt(conversation.messages[:-1], BYTES)
    assert prompt == ids[: len(prompt)]
    assert prompt[-1] == SEP
    assert mask[len(prompt)] == 1 and sum(mask[len(prompt) :]) == len(ids) - len(prompt)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "must be the user's. Received: no message"),
        ([Message("user", "a"), Message("assistant", "b")], "must be the user's. Received: assistant"),
        ([Message("system", "a")], "must be the user's. Received: system"),
        ([Message("user", "a"), Message("user", "b")], "Received: user, user. Reorder"),
    ],
)
def test_bad_prompts(messages, message):
    with pytest.raises(ValueError, match=message):
        TEMPLATE.prompt(messages, BYTES)


def test_a_tokenizer_without_the_markers():
    markers = {name: number for name, number in MARKERS.items() if name not in ("<sep>", "<end>")}
    for make in (
        lambda t: TEMPLATE.render(talk("a", "b"), t),
        lambda t: TEMPLATE.prompt([Message("user", "a")], t),
    ):
        with pytest.raises(ValueError, match=r"Missing: <end>, <sep>. Train .* own markers: <pad>, <start>\."):
            make(ByteTokenizer(markers))


CHATML = ChatTemplate(
    **{f"{role}_prefix": f"<|im_start|>{role}\n" for role in ("system", "user", "assistant")},
    **{f"{role}_suffix": "<|im_end|>\n" for role in ("system", "user", "assistant")},
)


def test_prefixes_of_text_and_markers():
    tokenizer = ByteTokenizer({"<|im_start|>": 2, "<|im_end|>": 3})
    ids, mask = CHATML.render(talk("a", "b"), tokenizer)
    question = [2, *said("user\na"), 3, *said("\n"), 2, *said("assistant\n")]
    assert ids == [*question, *said("b"), 3, *said("\n")]
    assert mask == [0] * len(question) + [1, 1, 0], "the newline after the end is not for the model to say"
    assert CHATML.prompt([Message("user", "a")], tokenizer) == question


def hub_tokenizer(markers, jinja):
    """Make the byte tokenizer once more, out of Hugging Face's parts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocab = {name: number for name, number in markers.items()}
    vocab |= {letter: FIRST + byte for byte, letter in bytes_to_unicode().items()}
    tokenizer = Tokenizer(models.BPE(vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(markers))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=jinja)


@pytest.mark.parametrize("system", [None, "친절하게\n말해 {{ 1 }}"])
@pytest.mark.parametrize("template", [TEMPLATE, CHATML], ids=["smolite", "chatml"])
def test_jinja_is_the_same_in_transformers(template, system):
    markers = MARKERS if template is TEMPLATE else {"<|im_start|>": START, "<|im_end|>": END}
    tokenizer, hub = ByteTokenizer(markers), hub_tokenizer(markers, template.jinja())
    conversation = talk('그는 "응" 했어\'\\n', " 그래요? ㅋㅋㅋ ", "😀", "끝", system=system)
    dicts = [dataclasses.asdict(message) for message in conversation.messages]
    assert hub.apply_chat_template(dicts)["input_ids"] == template.render(conversation, tokenizer)[0]
    prompt = hub.apply_chat_template(dicts[:-1], add_generation_prompt=True)["input_ids"]
    assert prompt == template.prompt(conversation.messages[:-1], tokenizer)


def test_the_rendered_string():
    hub = hub_tokenizer(MARKERS, TEMPLATE.jinja())
    dicts = [dataclasses.asdict(message) for message in talk("안녕", "네", system="s").messages]
    assert hub.apply_chat_template(dicts, tokenize=False) == "<start>s<end><start>안녕<sep>네<end>"


def test_to_and_from_dict():
    assert ChatTemplate.from_dict(CHATML.to_dict()) == CHATML
    assert ChatTemplate.from_dict({}) == TEMPLATE
    assert CHATML.markers == ("<|im_end|>", "<|im_start|>")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stop": "x"}, "must have only the keys system_prefix, .*. Received: stop. Rename"),
        ({"user_prefix": None}, "`user_prefix` must be a string. Received: None"),
        ({"assistant_suffix": "\n"}, "`assistant_suffix` must hold a marker"),
    ],
)
def test_bad_templates(values, message):
    with pytest.raises(ValueError, match=message):
        ChatTemplate.from_dict(values)


def test_conversations_are_cut_to_whole_exchanges():
    short, long = talk("a", "b"), talk("a", "b", "c", "d", "e", "f" * 9, system="s")
    for context_length, turns in [(25, 7), (24, 5), (12, 5), (11, 3), (7, 3)]:
        fitted = fit_context([short, long], BYTES, context_length=context_length)
        assert [len(one.messages) for one in fitted.kept] == [2, turns]
        assert fitted.examples == [Example(*TEMPLATE.render(one, BYTES)) for one in fitted.kept]
        assert fitted.counts == {"whole": 1 + (turns == 7), "shortened": int(turns < 7), "dropped": 0}
    assert fit_context([short, long], BYTES, context_length=6).counts == {
        "whole": 1,
        "shortened": 0,
        "dropped": 1,
    }


def test_nothing_fits():
    with pytest.raises(ValueError, match="Received: 2 conversations and 3; not one first exchange fits. Raise"):
        fit_context([talk("a", "b")] * 2, BYTES, context_length=3)


def test_show(tmp_path):
    path = tmp_path / "d.jsonl"
    line = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b\\nc"}]}\n'
    path.write_text(line * 2, encoding="utf-8")
    assert show(path, BYTES, count=1) == "\n".join(
        [
            f"{path}\n          2  dialogues read\n          2  kept\n",
            f"{path}:1: 7 tokens, 4 trained\n<start> a <sep> [b ⏎ c <end>]\n",
            "8 of 14 tokens are trained (57.1%), in 2 dialogues",
        ]
    )
    conversations = read_conversations(path).conversations
    assert "\033[32mb ⏎ c <end>\033[0m" in show(conversations, BYTES, colour=True)
    with pytest.raises(ValueError, match="at least one conversation. Received: none"):
        show([], BYTES)


def test_with_a_trained_tokenizer(tmp_path):
    from smolite.text.tokenizer import train_tokenizer

    texts = [
        "안녕하세요 친구",
        "오늘 날씨가 참 좋네요",
        "점심은 먹었어요?",
        "네, 맛있게 먹었어요 ㅋㅋㅋ",
    ] * 20
    tokenizer = train_tokenizer(texts, tmp_path / "tokenizer.model", vocab_size=320)
    conversation = talk("안녕 <end>", "네, 좋아요\n정말", system="오늘")
    ids, mask = TEMPLATE.render(conversation, tokenizer)
    markers = tokenizer.markers
    before = [
        markers["<start>"], *tokenizer.encode("오늘"), markers["<end>"],
        markers["<start>"], *tokenizer.encode("안녕 <end>"), markers["<sep>"],
    ]  # fmt: skip
    answer = [*tokenizer.encode("네, 좋아요\n정말"), markers["<end>"]]
    assert (ids, mask) == (before + answer, [0] * len(before) + [1] * len(answer))
    assert ids.count(markers["<end>"]) == 2
    trained = [token for token, learnt in zip(ids, mask, strict=True) if learnt]
    assert tokenizer.decode(trained) == "네, 좋아요\n정말"
    assert "<end>]" in show([conversation], tokenizer)
