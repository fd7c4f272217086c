"""Referees: prompts put together by hand, and an engine that says a given text."""

import numpy as np
import pytest
from tiny import tokenizer
from tiny_json import trained

from smolite.data.hub_templates import CHATML
from smolite.data.template import ChatTemplate, Message
from smolite.generation.engine import Engine
from smolite.generation.replies import fit_messages, reply, stream_reply
from smolite.generation.sampling import Sampling
from smolite.text.json_tokenizer import JsonTokenizer

TURNS = ["안녕!", "안녕하세요?", "뭐 해?", "쉬고 있어요.", "점심은?", "국수를 먹었어요.", "맛있었어?"]
DIALOGUE = [Message(("user", "assistant")[place % 2], text) for place, text in enumerate(TURNS)]
SYSTEM = Message("system", "친절하게 답해요.")


class Parrot(Engine):
    """An engine of batch size 1 that always says the same ids, whatever it is asked."""

    def __init__(self, ids, context_length=64):
        self.ids, self.context_length, self.vocab_size = ids, context_length, tokenizer().vocab_size
        self.prompts, self.place = [], 0

    def start(self, prompts):
        self.prompts.append(list(prompts[0]))
        self.place = 0
        return self.says()

    def step(self, ids):
        self.place += 1
        return self.says()

    def says(self):
        logits = np.zeros((1, self.vocab_size), "float32")
        logits[0, self.ids[min(self.place, len(self.ids) - 1)]] = 9.0
        return logits


def rendered(first, *, system=()):
    """The prompt by hand: <start> user <sep> answer <end> … <start> user <sep>."""
    pieces = tokenizer()
    ids = [pieces.start_id, *pieces.encode(SYSTEM.content), pieces.end_id] if system else []
    for message in DIALOGUE[first:]:
        text = pieces.encode(message.content)
        ids += [pieces.start_id, *text, pieces.sep_id] if message.role == "user" else [*text, pieces.end_id]
    return ids


@pytest.mark.parametrize("system", [(), (SYSTEM,)], ids=["alone", "system"])
@pytest.mark.parametrize("first", [0, 2, 4, 6])
def test_the_oldest_exchanges_are_forgotten_first(first, system):
    expected = rendered(first, system=system)
    longer = len(rendered(first - 2, system=system)) if first else 10_000
    for room in (len(expected), longer - 1):
        assert fit_messages([*system, *DIALOGUE], tokenizer(), template=ChatTemplate(), room=room) == expected


def test_the_last_question_is_kept_whatever_its_length():
    assert fit_messages(DIALOGUE, tokenizer(), template=ChatTemplate(), room=1) == rendered(6)


def test_the_answer_ends_before_the_marker():
    pieces = tokenizer()
    engine = Parrot([*pieces.encode("국수를 먹었어요."), pieces.end_id])
    assert reply(engine, DIALOGUE[:1], tokenizer=pieces) == "국수를 먹었어요."
    assert engine.prompts == [[pieces.start_id, *pieces.encode("안녕!"), pieces.sep_id]]


def test_the_pieces_are_whole_characters_and_make_up_the_answer():
    pieces = tokenizer()
    text = "갉뷁 점심 🍜"
    ids = pieces.encode(text)
    assert len(ids) > len(text), "there must be characters written in bytes"
    chunks = list(stream_reply(Parrot([*ids, pieces.end_id]), DIALOGUE[:1], tokenizer=pieces))
    assert "".join(chunks) == text and all(chunks) and not any("\ufffd" in chunk for chunk in chunks)


def test_an_answer_cut_in_a_character_ends_with_the_broken_bytes():
    pieces = tokenizer()
    ids = pieces.encode("뷁")
    answer = reply(Parrot(ids), DIALOGUE[:1], tokenizer=pieces, max_new_tokens=len(ids) - 1)
    assert answer == pieces.decode(ids[:-1]) and answer.endswith("\ufffd")


@pytest.mark.parametrize(("max_new_tokens", "room"), [(8, 56), (40, 32)])
def test_room_is_left_for_the_answer(max_new_tokens, room):
    engine = Parrot([tokenizer().end_id])
    reply(engine, DIALOGUE, tokenizer=tokenizer(), max_new_tokens=max_new_tokens)
    expected = next(rendered(first) for first in (0, 2, 4, 6) if len(rendered(first)) <= room)
    assert engine.prompts == [expected]


def test_sampling_is_passed_on():
    engine = Parrot([7, 8, 9])
    answers = {
        reply(engine, DIALOGUE[:1], tokenizer=tokenizer(), sampling=Sampling(temperature=50.0, seed=seed), max_new_tokens=4)
        for seed in range(3)
    }
    assert len(answers) == 3


def test_a_question_longer_than_the_context():
    with pytest.raises(ValueError, match="A prompt must have 1 to 64 tokens, the engine's `context_length`. Received:"):
        reply(Parrot([7]), [Message("user", "점심은? " * 40)], tokenizer=tokenizer())


def test_the_last_message_must_be_the_users():
    with pytest.raises(ValueError, match="The last message of a prompt must be the user's. Received: assistant"):
        reply(Parrot([7]), DIALOGUE[:2], tokenizer=tokenizer())


def test_an_answer_stops_at_the_marker_of_its_template():
    """ChatML on a tokenizer whose texts end otherwise, as a base model's do."""
    pieces = JsonTokenizer(trained(), roles={"end": "<|endoftext|>"})
    said = [*pieces.encode("점심에"), pieces.markers["<|im_end|>"], *pieces.encode("뭐")]
    assert reply(Parrot(said), DIALOGUE[:1], tokenizer=pieces, template=CHATML, max_new_tokens=9) == "점심에"
