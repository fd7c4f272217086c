"""Referee: the numpy reference, which has no cache, no padding and no batch."""

import numpy as np
import pytest
import reference
from reference import PAIR_CONFIGS, random_weights

from smolite.checkpoint.weights import assign_weights
from smolite.generation.loop import generate, stream
from smolite.generation.sampling import Sampling
from smolite.generation.seq2seq_engine import Seq2SeqEngine
from smolite.models.seq2seq_lm import Seq2SeqLM

CONFIG, START, SLOTS, TARGET = PAIR_CONFIGS["grouped"], 2, 20, 7
WEIGHTS = random_weights(CONFIG)
SOURCES = [[5, 6, 7], [9], list(range(11, 11 + SLOTS))]


@pytest.fixture(scope="module")
def model():
    model = Seq2SeqLM(CONFIG)
    assign_weights(model, WEIGHTS)
    return model


@pytest.fixture(scope="module")
def engine(model):
    return Seq2SeqEngine(model, start_id=START, batch_size=2, context_length=SLOTS, target_length=TARGET)


def test_logits_equal_the_reference_step_by_step_in_a_batch(engine):
    target = [4, 8, 15, 16, 23, 42]
    found = [engine.start(SOURCES[1:]), *(engine.step([index, index]) for index in target)]
    assert found[0].dtype == np.float32
    for row, source in enumerate(SOURCES[1:]):
        expected = reference.forward(CONFIG, WEIGHTS, [START, *target], source=source)
        np.testing.assert_allclose(np.stack(found)[:, row], expected, rtol=0, atol=1e-4)


def test_generate_writes_what_the_reference_writes_up_to_the_target_length(engine):
    """Three sources in an engine of two rows; the longest fills all its slots, which ends no answer."""
    expected = [reference.greedy(CONFIG, WEIGHTS, [START], source=source, steps=TARGET) for source in SOURCES]
    assert generate(engine, SOURCES, max_new_tokens=99) == expected
    assert generate(engine, SOURCES, max_new_tokens=3) == [ids[:3] for ids in expected]
    stop = expected[0][2]
    assert generate(engine, SOURCES[:1], stop_ids=[stop]) == [expected[0][: expected[0].index(stop)]]


def test_samplers_and_streams_work_as_on_any_engine(model, engine):
    single = Seq2SeqEngine(model, start_id=START, target_length=TARGET)
    sampling = Sampling(temperature=1.5, seed=3)
    drawn = generate(engine, SOURCES[:2], sampling=sampling)
    assert list(stream(single, SOURCES[0], sampling=sampling)) == drawn[0] and len(drawn[0]) == TARGET
    assert drawn != generate(engine, SOURCES[:2])


def test_training_is_seen(model, engine):
    before = engine.start(SOURCES[:2])
    model.encoder_norm.scale.assign(2 * model.encoder_norm.scale)
    after = engine.start(SOURCES[:2])
    assign_weights(model, WEIGHTS)
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_array_equal(engine.start(SOURCES[:2]), before)


def test_what_the_engine_cannot_read(model, engine):
    with pytest.raises(ValueError, match=f"1 to {SLOTS} tokens.*Received: {SLOTS + 1}"):
        engine.start([[5], [5] * (SLOTS + 1)])
    with pytest.raises(ValueError, match="takes 2 sources at a time, its `batch_size`. Received: 1"):
        engine.start([[5]])
    engine.start(SOURCES[:2])
    with pytest.raises(ValueError, match="takes 2 ids at a time, its `batch_size`. Received: 3"):
        engine.step([5, 6, 7])
    for _ in range(TARGET - 1):
        engine.step([5, 6])
    with pytest.raises(ValueError, match=f"must have a free slot. Received: a step after {TARGET} tokens in {TARGET} slots"):
        engine.step([5, 6])
    with pytest.raises(ValueError, match="`target_length` must be from 1 to 24"):
        Seq2SeqEngine(model, start_id=START, target_length=25)
    with pytest.raises(ValueError, match="Token ids must be from 0 to 96. Received: 97"):
        Seq2SeqEngine(model, start_id=97)
