"""The contract of an engine, on one written by somebody else. Referee: counting."""

import sys

import numpy as np
import pytest
from exported import run_apart

from smolite.generation.engine import Engine
from smolite.generation.loop import generate, stream


class Counting(Engine):
    """Says after each id the next one, 0 after the last; an engine of two rows with nothing but what the contract asks."""

    batch_size, context_length, vocab_size = 2, 8, 10

    def __init__(self):
        self.used, self.starts = self.context_length, []

    def start(self, prompts):
        self.starts.append([list(prompt) for prompt in prompts])
        self.used = max(map(len, prompts)) - 1
        return self.step([prompt[-1] for prompt in prompts])

    def step(self, ids):
        assert self.used < self.context_length, "a step after the last slot"
        self.used += 1
        return np.eye(self.vocab_size, dtype="float32")[(np.array(ids) + 1) % self.vocab_size]


class Answering(Counting):
    """The same, with an answer of at most 12 ids apart from its prompt."""

    target_length, start_id = 12, 0

    def start(self, prompts):
        self.used = -99
        return self.step([prompt[-1] for prompt in prompts])


def test_greedy_goes_step_by_step_where_an_engine_has_nothing_better():
    engine = Counting()
    engine.start([[1], [4]])
    picks = engine.greedy([2, 5], 3)
    assert picks.dtype == np.int32 and picks.tolist() == [[3, 6], [4, 7], [5, 8]]
    engine.start([[1], [4]])
    assert engine.greedy([2, 5], 6, stop_ids=[4, 7]).tolist() == [[3, 6], [4, 7]]
    assert engine.greedy([4, 7], 6, stop_ids=[4, 7]).shape == (0, 2)


def test_greedy_refuses_what_is_no_number():
    engine = Counting()
    engine.step = lambda ids: np.full((2, 10), np.nan)
    with pytest.raises(FloatingPointError, match="Logits must be numbers. Received: NaN"):
        engine.greedy([1, 2], 1)


def test_generation_needs_nothing_but_start_and_step():
    engine = Counting()
    prompts = [[1, 2, 3], [7], [4, 5]]
    expected = [[(prompt[-1] + 1 + place) % 10 for place in range(11)] for prompt in prompts]
    assert generate(engine, prompts, max_new_tokens=11) == expected
    # Of a row that fills the cache the newest half is read again; a shorter one is kept whole.
    assert engine.starts[:2] == [[[1, 2, 3], [7]], [[6, 7, 8, 9], [7, 8, 9, 0, 1, 2, 3]]]
    engine.batch_size = 1
    assert list(stream(engine, prompts[0], max_new_tokens=11)) == expected[0]


def test_an_answer_apart_from_its_prompt_ends_with_its_own_length():
    engine = Answering()
    assert generate(engine, [[1], [7]], max_new_tokens=99) == [[(first + 1 + i) % 10 for i in range(12)] for first in (1, 7)]
    assert generate(engine, [[1], [7]], max_new_tokens=99, stop_ids=[9]) == [[2, 3, 4, 5, 6, 7, 8], [8]]


def test_what_a_runtime_does_not_have_is_said_by_the_contract():
    engine = Counting()
    assert (engine.target_length, engine.start_id, engine.drafts, engine.read_lengths) == (None, None, 0, ())
    assert engine.forward_logits([1], [2]) is None and engine.read_caches() == {} and engine.close() is None
    engine.batch_size = 1
    engine.start([[1]])
    assert engine.read([5, 6]).argmax(-1).tolist() == [6]


def test_an_engine_must_start_and_step():
    class Idle(Engine):
        context_length, vocab_size = 8, 10

    with pytest.raises(TypeError, match="abstract"):
        Idle()


@pytest.mark.parametrize("module", ["engine", "sampling", "loop", "replies"])
def test_the_contract_and_what_drives_it_import_no_keras(module):
    heavy = run_apart(f"import sys, smolite.generation.{module}; print('keras' in sys.modules, 'tensorflow' in sys.modules)")
    assert heavy == "False False\n" and "keras" in sys.modules
