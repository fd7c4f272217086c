"""Referees: expected dialogues written by hand beside each file, and the data sets' own line counts."""

import json
import time
from pathlib import Path

import pytest

from smolite.data.dialogues import Conversation, Message, read_conversations, read_documents

SHARED = Path(__file__).parents[3] / "shared" / "data"
NAMES = {"s": "system", "h": "human", "g": "gpt"}


def sharegpt(*turns, **extra):
    """Make one line of ("h", text) pairs."""
    return json.dumps({"conversations": [{"from": NAMES[who], "value": text} for who, text in turns], **extra})


def read(folder, *lines, **arguments):
    path = folder / "d.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return read_conversations(path, **arguments)


def turns_of(conversation):
    return [(message.role[0], message.content) for message in conversation.messages]


def test_both_forms_and_extra_keys(tmp_path):
    first = sharegpt(("s", "친절하게"), ("h", " 안녕\r\n하세요 "), ("g", "네"), id=7)
    second = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    third = json.dumps({"conversations": [{"from": "user", "value": "c"}, {"role": "assistant", "content": "d"}]})
    result = read(tmp_path, first, "", second, third)
    assert list(map(turns_of, result.conversations)) == [
        [("s", "친절하게"), ("u", "안녕\n하세요"), ("a", "네")],
        [("u", "a"), ("a", "b")],
        [("u", "c"), ("a", "d")],
    ]
    assert [conversation.source for conversation in result.conversations] == [
        f"{tmp_path / 'd.jsonl'}:{line}" for line in (1, 3, 4)
    ]
    assert (result.counts["read"], result.counts["kept"], result.counts["dropped"]) == (3, 3, 0)


def test_one_array(tmp_path):
    line = sharegpt(("h", "a"), ("g", "b"))
    assert len(read(tmp_path, f"[{line},\n{line}]").conversations) == 2


U, A = ("h", "질문"), ("g", "대답")


@pytest.mark.parametrize(
    ("turns", "kept", "cases"),
    [
        ([A, U, A], "ua", ["leading_assistant"]),
        ([("s", "x"), A, A, U, A], "sua", ["leading_assistant"]),
        ([("s", " "), U, A], "ua", ["empty_system"]),
        ([U, A, U], "ua", ["trailing_user"]),
        ([U, A, U, ("g", "")], "ua", ["empty_turn", "trailing_user"]),
        ([U, A, ("h", " \n"), A], "ua", ["empty_turn"]),
        ([U, A, A, U, A], "ua", ["out_of_order"]),
        ([U, U, A], "", ["out_of_order", "trailing_user"]),
        ([U, A, ("s", "x"), U, A], "ua", ["out_of_order"]),
        ([A], "", ["leading_assistant"]),
        ([], "", ["no_assistant"]),
        ([U], "", ["no_assistant", "trailing_user"]),
        ([U, U], "", ["no_assistant", "out_of_order", "trailing_user"]),
        ([A, ("h", ""), A], "", ["leading_assistant", "empty_turn"]),
        ([U, A, U, A], "uaua", []),
    ],
)
def test_the_rule_for_untidy_dialogues(turns, kept, cases, tmp_path):
    result = read(tmp_path, sharegpt(*turns), sharegpt(U, A))
    expected = [kept, "ua"] if kept else ["ua"]
    assert ["".join(role for role, _ in turns_of(one)) for one in result.conversations] == expected
    counted = [name for name, count in result.counts.items() if count and name not in ("read", "kept", "dropped")]
    assert sorted(counted) == sorted(cases)
    assert result.counts["kept"] + result.counts["dropped"] == result.counts["read"] == 2


def test_summary_shows_every_case_that_came_up(tmp_path):
    summary = read(tmp_path, sharegpt(U, A, U), sharegpt(U, A), sharegpt(A)).summary()
    assert summary.splitlines() == [
        str(tmp_path / "d.jsonl"),
        "          3  dialogues read",
        "          2  kept",
        "          1  dropped, because nothing was left",
        "          1  assistant turns before the first user turn left out",
        "          1  last user turn without an answer left out",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"text": "a"}',
            "d.jsonl:2: must have a list `conversations` or `messages`. Received the keys: text",
        ),
        ('{"messages": {"role": 1}}', "d.jsonl:2: must have a list"),
        ('{"messages": ["hi"]}', "d.jsonl:2: turn 1 must be an object .* Received: 'hi'"),
        ('{"messages": [{"role": "user"}]}', "d.jsonl:2: turn 1 must be an object"),
        (sharegpt(U, ("g", None)), r"d.jsonl:2: turn 2: `value` must be a string. Received: None"),
        (sharegpt(U, ("g", 3)), r"d.jsonl:2: turn 2: `value` must be a string. Received: 3 \(int\)"),
        (
            '{"messages": [{"role": "tool", "content": "x"}]}',
            "turn 1: `role` must be one of system, .*: 'tool'",
        ),
        (
            '{"conversations": [{"from": ["gpt"], "value": "x"}]}',
            r"turn 1: `from` must be one of .*: \['gpt'\]",
        ),
        (sharegpt(U, ("g", "가" * 100_000)), "turn 2 must have at most 20,000 characters. Received: 100,000"),
        ('{"conversations": [', "d.jsonl:2: must be valid JSON"),
    ],
)
def test_bad_lines(line, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, sharegpt(U, A), line)


def test_the_limit_of_a_turn_can_be_moved(tmp_path):
    assert read(tmp_path, sharegpt(U, ("g", "가" * 30_000)), max_turn_characters=30_000).counts["kept"] == 1


def test_nothing_left(tmp_path):
    with pytest.raises(ValueError, match=r"at least one dialogue(.|\n)*cut before an empty turn(.|\n)*Mend"):
        read(tmp_path, sharegpt(U, ("g", " ")))


def test_a_file_with_only_user_turns(tmp_path):
    with pytest.raises(ValueError, match=r"at least one dialogue(.|\n)*2  without an assistant turn, so with nothing"):
        read(tmp_path, sharegpt(U), sharegpt(U, U))


@pytest.mark.parametrize("roles", ["", "s", "a", "uu", "us", "ssu", "uaa"])
def test_a_conversation_out_of_order(roles):
    names = {"s": "system", "u": "user", "a": "assistant"}
    with pytest.raises(ValueError, match=r"at x:1 must be user, assistant, user, … .*Reorder"):
        Conversation(tuple(Message(names[role], "x") for role in roles), "x:1")


def test_a_bad_message():
    with pytest.raises(ValueError, match="`role` must be one of system, user, assistant. Received: 'human'"):
        Message("human", "x")
    with pytest.raises(ValueError, match="`content` must be a string. Received: None"):
        Message("user", None)


@pytest.mark.slow
def test_a_hundred_thousand_lines_are_quick(tmp_path):
    line = sharegpt(U, A, U, A)
    began = time.perf_counter()
    assert len(read(tmp_path, *[line] * 100_000).conversations) == 100_000
    assert time.perf_counter() - began < 15


def test_documents_are_texts_or_what_everybody_says(tmp_path):
    texts, dialogues = tmp_path / "texts.jsonl", tmp_path / "dialogues.jsonl"
    texts.write_text('{"text": "하나"}\n{"text": " "}\n{"text": "둘"}\n', "utf-8")
    turns = '[{"role": "user", "content": "안녕?"}, {"role": "assistant", "content": "네."}]'
    dialogues.write_text(f'{{"messages": {turns}}}\n', "utf-8")
    assert read_documents(texts) == ["하나", "둘"]
    assert read_documents(dialogues) == ["안녕?", "네."]
    texts.write_text('{"text": 5}\n', "utf-8")
    with pytest.raises(ValueError, match=r"must hold text or dialogues.\nAs text: .*\nAs dialogues: "):
        read_documents(texts)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data set is beside the project only where it is developed")
@pytest.mark.parametrize("file", ["chatbot_ko.dev", "persona_ko.train", "music_ko.train", "manual_ko.train"])
def test_real_dialogues(file):
    path = SHARED / f"{file}.jsonl"
    result = read_conversations(path)
    assert result.counts["read"] == len(path.read_bytes().splitlines())
    raw = json.loads(path.read_text(encoding="utf-8").splitlines()[0])["conversations"]
    assert [message.content for message in result.conversations[0].messages] == [turn["value"].strip() for turn in raw]
