"""Referees: rows written by hand, counting by numpy, and a plain quadratic best-fit."""

import time

import numpy as np
import pytest

from smolite.data.packing import PackedRows, next_token_fields, pack, text_rows, unpacked_rows


def example(first, *answer):
    """Make `<start> first <sep> answer <end>` and its mask."""
    ids = [2, first, 4, *answer, 3]
    return ids, [0, 0, 0] + [1] * (len(answer) + 1)


def random_examples(count, *, length, seed=0):
    rng = np.random.default_rng(seed)
    sizes = np.minimum(rng.geometric(0.1, count), length - 3)
    return [example(int(rng.integers(5, 99)), *map(int, rng.integers(5, 99, size))) for size in sizes]


def segments_of(rows):
    """Return (tokens, targets, weights, positions) of each example in the rows, as tuples, sorted."""
    found = []
    for row in range(len(rows)):
        for segment in range(1, rows.segments[row].max() + 1):
            place = row, rows.segments[row] == segment
            arrays = rows.tokens, rows.targets, rows.weights, rows.positions
            found.append(tuple(tuple(array[place].tolist()) for array in arrays))
    return sorted(found)


def test_next_token_fields_learn_the_first_token_of_the_answer():
    fields = next_token_fields([2, 7, 4, 9, 3], [0, 0, 0, 1, 1])
    assert fields == ([2, 7, 4, 9], [7, 4, 9, 3], [0, 0, 1, 1])
    trained = [target for target, weight in zip(*fields[1:], strict=True) if weight]
    assert trained == [9, 3]


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([2, 3], [1], "must have the same length. Received: 2 and 1"),
        ([2], [1], "at least 2 tokens, one to read and one to say. Received: 1"),
        ([], [], "at least 2 tokens"),
    ],
)
def test_bad_ids(ids, mask, message):
    with pytest.raises(ValueError, match=message):
        next_token_fields(ids, mask)


def test_the_example_of_the_docstring():
    rows = pack([([2, 7, 3], [0, 1, 1]), ([2, 9, 8, 3], [0, 0, 1, 1])], 6)
    assert rows.tokens.tolist() == [[2, 9, 8, 2, 7, 0]]
    assert rows.targets.tolist() == [[9, 8, 3, 7, 3, 0]]
    assert rows.weights.tolist() == [[0, 1, 1, 1, 1, 0]]
    assert rows.positions.tolist() == [[0, 1, 2, 0, 1, 0]]
    assert rows.segments.tolist() == [[1, 1, 1, 2, 2, 0]]
    assert [array.dtype for array in (rows.tokens, rows.targets, rows.positions, rows.segments)] == ["int32"] * 4
    assert rows.weights.dtype == "float32"
    assert (len(rows), rows.length, rows.num_trained, rows.fill) == (1, 6, 4, 5 / 6)


def test_no_first_token_is_a_target_of_the_example_before_it():
    rows = pack([example(5, 6), example(7, 8), example(9, 10)], 13)
    assert len(rows) == 1
    assert 2 in rows.tokens[0, 1:]
    assert 2 not in rows.targets


@pytest.mark.parametrize("length", [31, 64, 129])
def test_packing_keeps_every_example_whole(length):
    examples = random_examples(500, length=length)
    packed, unpacked = pack(examples, length), unpacked_rows(examples, length)
    assert segments_of(packed) == segments_of(unpacked)
    assert len(unpacked) == 500 and len(packed) < 500
    trained = sum(sum(mask) for _, mask in examples)
    assert packed.num_trained == unpacked.num_trained == trained == packed.weights.sum()
    assert (packed.tokens[packed.segments == 0] == 0).all() and (packed.weights[packed.segments == 0] == 0).all()


def test_each_row_of_unpacked_is_one_example_in_order():
    examples = random_examples(9, length=20)
    rows = unpacked_rows(examples, 20)
    for row, (ids, mask) in enumerate(examples):
        size = len(ids) - 1
        assert rows.tokens[row, :size].tolist() == ids[:-1]
        assert rows.targets[row, :size].tolist() == ids[1:]
        assert rows.weights[row, :size].tolist() == mask[1:]
        assert rows.segments[row].tolist() == [1] * size + [0] * (20 - size)
        assert rows.positions[row].tolist() == [*range(size)] + [0] * (20 - size)


def rows_needed(sizes, length):
    """Count the rows of best-fit decreasing, in the plain quadratic way."""
    rooms = []
    for size in sorted(sizes, reverse=True):
        fitting = [room for room in rooms if room >= size]
        if fitting:
            rooms[rooms.index(min(fitting))] -= size
        else:
            rooms.append(length - size)
    return len(rooms)


def test_packing_is_best_fit_and_repeatable():
    examples = random_examples(300, length=50, seed=3)
    first, second = pack(examples, 50), pack(examples, 50)
    assert len(first) == rows_needed([len(ids) - 1 for ids, _ in examples], 50)
    assert first.fill > 0.98
    np.testing.assert_array_equal(first.tokens, second.tokens)


@pytest.mark.slow
def test_a_hundred_thousand_examples_are_quick():
    examples = [example(5, *range(6, 6 + 3 + place % 40)) for place in range(100_000)]
    began = time.perf_counter()
    rows = pack(examples, 128)
    assert time.perf_counter() - began < 15
    assert rows.fill > 0.99


def test_ids_that_just_fit_and_that_do_not():
    assert len(pack([example(5, 6, 7, 8)], 6)) == 1
    with pytest.raises(ValueError, match="Example 1 must have at most 6 ids to fit rows of 5. Received: 7. Shorten"):
        pack([example(5, 6), example(5, 6, 7, 8)], 5)


@pytest.mark.parametrize(
    ("examples", "length", "message"),
    [
        ([], 8, "at least one example. Received: none"),
        ([example(5, 6)], 0, "`length` must be at least 1. Received: 0"),
        (
            [([2, 5, 3], [0, 0, 0])],
            8,
            "Example 0 must have a trained token after its first.*nothing to learn",
        ),
        ([([2, 5, 3], [1, 0, 0])], 8, "Example 0 must have a trained token after its first"),
        ([([2], [1])], 8, "at least 2 tokens"),
    ],
)
def test_bad_examples(examples, length, message):
    for make in (pack, unpacked_rows):
        with pytest.raises(ValueError, match=message):
            make(examples, length)


class Numbers:
    """A tokenizer of numbers: "7 8" has the ids 7 and 8."""

    end_id = 3

    def encode(self, text):
        return [int(word) for word in text.split()]


def test_text_rows():
    rows = text_rows(["7 8 9 5", "", "6"], Numbers(), length=2)
    assert isinstance(rows, PackedRows)
    assert rows.tokens.tolist() == [[7, 8], [9, 5], [6, 0]]
    assert rows.targets.tolist() == [[8, 9], [5, 3], [3, 0]]
    assert rows.weights.tolist() == [[1, 1], [1, 1], [1, 0]]
    assert rows.positions.tolist() == [[0, 1], [0, 1], [0, 0]]


@pytest.mark.parametrize("length", [1, 7, 16])
def test_every_token_of_a_text_but_the_first_is_a_target_once(length):
    texts = [" ".join(map(str, range(10, 10 + size))) for size in (1, 2, 6, 7, 8, 15, 16, 17, 40)]
    rows = text_rows(texts, Numbers(), length=length)
    expected = sorted(number for text in texts for number in [*map(int, text.split()[1:]), 3])
    assert sorted(rows.targets[rows.weights == 1].tolist()) == expected
    assert ((rows.weights == 1) == (rows.segments > 0)).all()


def test_no_text():
    with pytest.raises(ValueError, match="at least one example. Received: none"):
        text_rows(["", ""], Numbers(), length=4)
    with pytest.raises(ValueError, match="`length` must be at least 1. Received: 0"):
        text_rows(["7 8"], Numbers(), length=0)
