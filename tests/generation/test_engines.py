"""Referees: the numpy reference, which has no cache, and the model's own uncached forward in half precision."""

import dataclasses
import logging

import keras
import numpy as np
import pytest
import reference
from reference import AWKWARD_CONFIGS, random_weights

from smolite.checkpoint.weights import assign_weights, model_weights
from smolite.generation.compiled_steps import compiled
from smolite.generation.engine import check_prompts
from smolite.generation.keras_engine import KerasEngine
from smolite.models.causal_lm import CausalLM

SLOTS = 27
PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24]]
CONFIG = dataclasses.replace(AWKWARD_CONFIGS["grouped"], num_layers=2, dropout=0.5)  # which must drop nothing
WEIGHTS = random_weights(CONFIG)


def ids(count, *, seed=0):
    return np.random.RandomState(seed).randint(0, CONFIG.vocab_size, count).tolist()


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max()))


def logits_after(engine, text, split):
    """The logits after text[:split], text[:split + 1], …, text: prefill, then one token at a time."""
    first = engine.start([text[:split]])
    return np.concatenate([first, *(engine.step([index]) for index in text[split:])])


@pytest.fixture(scope="module")
def model():
    return CausalLM(CONFIG)


@pytest.fixture(scope="module")
def shared_engine(model):
    return KerasEngine(model, context_length=SLOTS)


@pytest.fixture
def engine(model, shared_engine):
    """Compiled once for all tests, with the weights that each test expects."""
    assign_weights(model, WEIGHTS)
    return shared_engine


def test_cached_equals_uncached_for_any_split(engine):
    text = ids(SLOTS)
    expected = reference.forward(CONFIG, WEIGHTS, text)
    for split in range(1, SLOTS + 1):
        actual = logits_after(engine, text, split)
        assert actual.dtype == np.float32
        close(actual, expected[split - 1 :])


def test_cached_equals_uncached_in_half_precision():
    model, text = CausalLM(CONFIG, dtype="mixed_bfloat16"), ids(SLOTS)
    assign_weights(model, WEIGHTS)
    engine = KerasEngine(model, context_length=SLOTS)
    exact = reference.forward(CONFIG, WEIGHTS, text)
    uncached = reference.run(model, np.array([text]))[0]
    for split in (1, 8, 16):
        cached = logits_after(engine, text, split)
        # bfloat16 keeps 8 bits, and sums of other lengths round otherwise: both err, by about as much. How much depends on the
        # processor: on TensorFlow the ratio is below 1.2 with AVX-512, and 1.22 on an AMD EPYC with AVX2 alone.
        rounding = np.std(uncached[split - 1 :] - exact[split - 1 :])
        assert rounding < 0.2
        assert np.std(cached - exact[split - 1 :]) < 1.4 * rounding
        assert np.std(cached - uncached[split - 1 :]) < rounding


def test_prompts_of_different_lengths_in_float16():
    """What a row's padding sees is masked as a whole; an infinite mask would leave no number."""
    model = CausalLM(CONFIG, dtype="mixed_float16")
    assign_weights(model, WEIGHTS)
    logits = KerasEngine(model, batch_size=2, context_length=SLOTS).start([[5, 6, 7], [5, 6, 7, 8, 9]])
    for row, prompt in zip(logits, ([5, 6, 7], [5, 6, 7, 8, 9]), strict=True):
        exact = reference.forward(CONFIG, WEIGHTS, prompt)[-1]
        assert np.abs(row - exact).max() < 0.02 * np.abs(exact).max()


def test_rows_of_a_batch_equal_single_runs(model, engine):
    batch = KerasEngine(model, batch_size=3, context_length=SLOTS)
    logits, later = [batch.start(PROMPTS)], ids(9 * 3, seed=1)
    logits += [batch.step(later[step * 3 : step * 3 + 3]) for step in range(9)]
    for row, prompt in enumerate(PROMPTS):
        single = logits_after(engine, prompt + later[row::3], len(prompt))
        close(np.stack(logits)[:, row], single)


def test_a_prompt_may_fill_the_context(engine):
    text = ids(SLOTS)
    close(engine.start([text])[0], reference.forward(CONFIG, WEIGHTS, text)[-1])


def test_start_forgets_what_came_before(engine):
    first = engine.start([[5, 6]])
    engine.start([ids(SLOTS)])
    close(engine.start([[5, 6]]), first, tolerance=0)


def test_training_is_seen(model, engine):
    text = ids(20)
    before = logits_after(engine, text, 17)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05), loss=loss)
    model.fit(np.array([text[:-1]]), np.array([text[1:]]), verbose=0)
    after = logits_after(engine, text, 17)
    assert np.abs(after - before).max() > 0.01
    close(after, reference.forward(CONFIG, model_weights(model), text)[16:])


def test_broken_weights_leave_nothing_in_the_cache(model, engine):
    assign_weights(model, {name: value * np.nan for name, value in WEIGHTS.items()})
    assert np.isnan(engine.start([ids(20)])).all()
    assign_weights(model, WEIGHTS)
    close(engine.start([[5, 6]])[0], reference.forward(CONFIG, WEIGHTS, [5, 6])[-1])


def test_the_context_length_is_the_models_by_default(model):
    engine = KerasEngine(model)
    assert (engine.batch_size, engine.context_length, engine.vocab_size) == (1, 80, 97)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be a positive whole number. Received: 0"),
        ({"context_length": 81}, "`context_length` must be from 1 to 80, the model's context length. Received: 81"),
        ({"context_length": -1}, "`context_length` must be from 1 to 80.*Received: -1"),
        ({"context_length": 0}, "`context_length` must be from 1 to 80.*Received: 0"),
    ],
)
def test_sizes_out_of_range_are_refused(model, sizes, message):
    with pytest.raises(ValueError, match=message):
        KerasEngine(model, **sizes)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([list(range(28))], "1 to 27 tokens, the engine's `context_length`. Received: 28 in prompt 0. Shorten"),
        ([[]], "1 to 27 tokens.*Received: 0 in prompt 0"),
        ([[5, 97]], "Token ids must be from 0 to 96. Received: 97 in prompt 0. Use the tokenizer"),
        ([[5, -1]], "Token ids must be from 0 to 96. Received: -1"),
        ([[5], [6]], "takes 1 prompts at a time, its `batch_size`. Received: 2"),
        ([], "takes 1 prompts at a time, its `batch_size`. Received: 0"),
    ],
)
def test_bad_prompts_are_refused(engine, prompts, message):
    with pytest.raises(ValueError, match=message):
        engine.start(prompts)


def test_bad_steps_are_refused(model, engine):
    with pytest.raises(ValueError, match="free slot. Received: a step after 27 tokens in 27 slots, or before `start`"):
        KerasEngine(model, context_length=SLOTS).step([5])
    engine.start([ids(SLOTS)])
    with pytest.raises(ValueError, match="free slot. Received: a step after 27 tokens"):
        engine.step([5])
    engine.start([[5]])
    with pytest.raises(ValueError, match="takes 1 ids at a time, its `batch_size`. Received: 2"):
        engine.step([5, 6])
    with pytest.raises(ValueError, match="Token ids must be from 0 to 96. Received: 97"):
        engine.step([97])


def test_check_prompts_names_the_prompt(engine):
    check_prompts([[5], [6, 7]], engine)
    with pytest.raises(ValueError, match="Received: 97 in prompt 1"):
        check_prompts([[5], [97]], engine)


def by_reference(prompt, count):
    """Greedy ids after the prompt, by the numpy reference, which has no cache."""
    row = list(prompt)
    for _ in range(count):
        row.append(int(reference.forward(CONFIG, WEIGHTS, row)[-1].argmax()))
    return row[len(prompt) :]


def test_greedy_picks_what_the_reference_picks(engine):
    first, *following = by_reference([5, 6, 7], 11)
    engine.start([[5, 6, 7]])
    assert engine.greedy([first], 4)[:, 0].tolist() == following[:4]
    assert engine.greedy(following[3:4], 6)[:, 0].tolist() == following[4:]


def test_steps_go_on_where_greedy_ended(engine):
    expected = by_reference([5, 6, 7], 6)
    engine.start([[5, 6, 7]])
    *_, last = engine.greedy(expected[:1], 3)
    assert engine.step(last)[0].argmax() == expected[4]


def test_greedy_ends_with_the_cache(engine):
    engine.start([ids(SLOTS - 2)])
    assert engine.greedy([5], 9).shape == (2, 1)
    with pytest.raises(ValueError, match="must have a free slot"):
        engine.greedy([5], 9)


def test_a_row_that_picked_a_stop_id_repeats_it_until_all_have(model, engine):
    batch = KerasEngine(model, batch_size=2, context_length=SLOTS)
    replies = [by_reference(prompt, 12) for prompt in ([5, 6, 7], [9])]
    stops = [replies[0][3], replies[1][8]]
    ends = [min(reply.index(stop) for stop in stops if stop in reply) for reply in replies]
    batch.start([[5, 6, 7], [9]])
    picks = batch.greedy([reply[0] for reply in replies], 11, stop_ids=stops)
    assert len(picks) == max(ends)
    for row, reply, end in zip(picks.T.tolist(), replies, ends, strict=True):
        assert row == reply[1 : end + 1] + [reply[end]] * (max(ends) - end)


def test_greedy_says_that_weights_are_broken(model, engine):
    engine.start([[5]])
    assign_weights(model, {name: value * np.nan for name, value in WEIGHTS.items()})
    with pytest.raises(FloatingPointError, match="Logits must be numbers"):
        engine.greedy([5], 3)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="only TensorFlow warns")
def test_prompts_of_many_lengths_bring_no_warning():
    said = []
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("tensorflow")
    logger.addHandler(listener)
    try:
        run = compiled(None, lambda _, tokens: tokens + 1, is_step=False)
        assert [int(run(np.zeros((1, length), "int32"))[0, -1]) for length in range(1, 9)] == [1] * 8
    finally:
        logger.removeHandler(listener)
    assert not said
