"""Referees: rows written by hand, and the loss of the pairs one by one."""

import json

import numpy as np
import pytest
import reference
from tiny import tokenizer

from smolite.data.dataset import ChatDataset
from smolite.data.dialogues import Conversation, Message
from smolite.data.packing import Example, pack, row_lengths, unpacked_rows
from smolite.data.pairs import Pair, dialogue_pairs, fit_pairs, read_pairs
from smolite.data.sources import resolve_dataset
from smolite.evaluation.likelihood import evaluate_rows


def learnt(target, source):
    """An example that learns all of its target after `<start>`."""
    return Example(target, [0, *[1] * (len(target) - 1)], source)


EXAMPLES = [learnt([2, 9, 3], [7, 8]), learnt([2, 6, 6, 3], [5])]


def write(folder, *lines):
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8")
    return path


def test_pairs_are_read_with_their_place(tmp_path):
    path = write(tmp_path, {"source": " 안녕\r\n너 ", "target": "hi", "id": 3}, "", {"source": "b", "target": "c"})
    assert read_pairs(path) == [Pair("안녕\n너", "hi", f"{path}:1"), Pair("b", "c", f"{path}:3")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"source": "a"}, r":1: must have a text `source` and a text `target`. Received the keys: source. Write both"),
        ({"source": "a", "target": " "}, r":1: `target` must have text. Received: an empty one. Write it, or delete this pair"),
        ({"source": 3, "target": "b"}, r":1: `source` must be a string. Received: 3"),
        ('{"source": "a"', r":1: must be valid JSON"),
        ('["a"]', r":1: must be a JSON object"),
    ],
)
def test_bad_lines_are_reported_by_file_and_line(tmp_path, line, message):
    with pytest.raises(ValueError, match="pairs.jsonl" + message):
        read_pairs(write(tmp_path, line))


def test_the_bundled_pairs_are_many_and_apart():
    train, held_out = (read_pairs(resolve_dataset(name)) for name in ("sample-pairs", "sample-pairs-heldout"))
    assert (len(train), len(held_out)) == (218, 24)
    for side in ("source", "target"):
        texts = [getattr(pair, side) for pair in train + held_out]
        assert len(set(texts)) == len(texts)
    assert all(any("가" <= letter <= "힣" for letter in pair.source) and pair.target.isascii() for pair in train + held_out)


def test_dialogues_become_a_pair_for_each_answer():
    turns = [("user", "안녕"), ("assistant", "응"), ("user", "뭐 해?"), ("assistant", "놀아"), ("user", "나도")]
    pairs = dialogue_pairs([Conversation(tuple(Message(*turn) for turn in turns), "d:1")])
    assert pairs == [Pair("안녕", "응", "d:1"), Pair("안녕\n응\n뭐 해?", "놀아", "d:1")]


def test_what_does_not_fit_is_cut_or_dropped_and_counted():
    encode, marks = tokenizer().encode, tokenizer()
    texts = [("오늘 점심", "네"), ("오늘 점심 뭐 먹을까?", "글쎄"), ("응", "오늘은 정말 피곤해요 " * 9)]
    length = len(encode(texts[0][0]))
    fitted = fit_pairs([Pair(*text) for text in texts], marks, source_length=length, target_length=8)
    assert fitted.counts == {"whole": 1, "cut": 1, "dropped": 1} and fitted.num_characters == 2 + 3
    for (source, target), example in zip(texts, fitted.examples, strict=False):
        assert example == learnt([marks.start_id, *encode(target), marks.end_id], encode(source)[:length])
    room = len(encode("글쎄요 잘")) + 1  # its ids, and one more place for `<start>` or `<end>`
    pair = Pair("a", "글쎄요 잘")
    assert fit_pairs([pair, pair], marks, source_length=4, target_length=room).counts["whole"] == 2
    both = fit_pairs([pair, Pair("a", "b")], marks, source_length=4, target_length=room - 1)
    assert both.counts["dropped"] == 1 and pack(both.examples, room - 1, source_length=4).num_trained
    with pytest.raises(ValueError, match="a target of less than 2 tokens. Received: 1 pairs"):
        fit_pairs([Pair("a", "글쎄요 잘")], marks, source_length=4, target_length=2)


def test_the_row_of_the_docstring():
    rows = pack(EXAMPLES, 6, source_length=4)
    assert rows.tokens.tolist() == [[2, 9, 2, 6, 6, 0]] and rows.targets.tolist() == [[9, 3, 6, 6, 3, 0]]
    assert rows.segments.tolist() == [[1, 1, 2, 2, 2, 0]] and rows.weights.tolist() == [[1, 1, 1, 1, 1, 0]]
    assert rows.source.tolist() == [[7, 8, 5, 0]] and rows.source_segments.tolist() == [[1, 1, 2, 0]]
    assert rows.source_positions.tolist() == [[0, 1, 0, 0]]
    assert row_lengths([learnt([2] * 10, [1] * 30)], 128) == (128, 48)
    assert row_lengths([Example([2] * 10, [1] * 10)], 128) == (None, 128)


def random_examples(count):
    random = np.random.RandomState(0)
    sizes = random.randint(1, 9, (count, 2))
    return [learnt([2, *random.randint(5, 61, t).tolist(), 3], random.randint(5, 61, n).tolist()) for n, t in sizes]


def test_every_pair_is_in_one_row_with_its_source():
    examples = random_examples(300)
    rows = pack(examples, 20, source_length=16)
    found = []
    for row in range(len(rows)):
        for number in range(1, rows.segments[row].max() + 1):
            here, there = rows.segments[row] == number, rows.source_segments[row] == number
            target = [*rows.tokens[row, here], rows.targets[row, here][-1]]
            found.append((tuple(rows.source[row, there]), tuple(target)))
    assert sorted(found) == sorted((tuple(source), tuple(target)) for target, _, source in examples)
    assert rows.fill > 0.8 and (rows.source_segments != 0).mean() > 0.8


def test_packed_pairs_have_the_loss_of_the_pairs_alone():
    model, examples = reference.random_model(reference.PAIR_CONFIGS["learned"]), random_examples(9)
    packed, alone = pack(examples, 24, source_length=24), unpacked_rows(examples, 10, source_length=9)
    assert len(packed) < len(alone) == 9
    both = [evaluate_rows(model, rows, 1, batch_size=3) for rows in (packed, alone)]
    assert both[0].num_tokens == both[1].num_tokens and both[0].nll == pytest.approx(both[1].nll, rel=1e-4)
    weights, expected = reference.random_weights(reference.PAIR_CONFIGS["learned"]), 0.0
    for target, _, source in examples:
        logits = reference.forward(reference.PAIR_CONFIGS["learned"], weights, target[:-1], source=source)
        expected -= np.log(reference.softmax(logits)[np.arange(len(target) - 1), target[1:]]).sum()
    assert both[1].nll == pytest.approx(expected, rel=1e-4)


def test_batches_have_sources_of_the_chosen_rows():
    rows = unpacked_rows(random_examples(5), 10, source_length=9)
    data = ChatDataset(rows, 2, seed=1)
    (inputs, *_), (last, *_) = data[1], data[2]
    order = np.random.default_rng((1, 0)).permutation(5)
    np.testing.assert_array_equal(inputs["source"], rows.source[order[2:4]])
    np.testing.assert_array_equal(last["source_segments"], [rows.source_segments[order[4]], np.zeros(9)])
    np.testing.assert_array_equal(last["source_positions"][0], rows.source_positions[order[4]])


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([learnt([2, 3], [1] * 5)], "A source must have 1 to 4 ids, the `source_length`. Received: 5 in example 0"),
        ([learnt([2, 3], [1]), learnt([2, 3], [])], "Received: 0 in example 1"),
        ([learnt([2] * 8, [1])], "Example 0 must have at most 7 ids"),
        ([], "at least one example"),
    ],
)
def test_pairs_that_fit_into_no_row_are_refused(examples, message):
    with pytest.raises(ValueError, match=message):
        pack(examples, 6, source_length=4)


def test_sources_without_a_length_for_them_are_refused():
    with pytest.raises(ValueError, match="must have no ids where no `source_length` is given. Received: 2 in example 0"):
        pack(EXAMPLES, 6)
