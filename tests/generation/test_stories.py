"""A real model, stories260K of llama2.c, says what llama2.c says: its 200-step greedy text, letter by letter."""

import numpy as np
import pytest
from reference import causal_mask, compiled, forward, rope, run, to_numpy
from stories import (
    FOLDER,
    REASON,
    half_split,
    stories_config,
    stories_decode,
    stories_golden,
    stories_pieces,
    stories_text,
    stories_tokenizer_proto,
    stories_weights,
)

from smolite.checkpoint import run as checkpoint
from smolite.checkpoint.weights import assign_weights
from smolite.generation.keras_engine import KerasEngine
from smolite.generation.loop import generate
from smolite.models.causal_lm import CausalLM
from smolite.text.tokenizer import Tokenizer

needs_stories = pytest.mark.skipif(not FOLDER.exists(), reason=REASON)
START = 1
STEPS = 200


@pytest.fixture(scope="module")
def model():
    model = CausalLM(stories_config())
    assign_weights(model, stories_weights())
    return model


@pytest.fixture(scope="module")
def golden():
    """The start symbol and the 200 ids that llama2.c wrote after it."""
    return stories_golden()[0]["ids_200"]


def test_half_split_turns_pairs_of_neighbours_into_pairs_of_halves():
    """In two heads of four rows, 0 1 2 3 become 0 2 1 3; a score of rotated heads stays what it was."""
    rows = np.arange(8.0)[:, None]
    assert half_split(rows, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    turns = np.exp(1j * np.arange(5)[:, None] * 100.0 ** (-np.arange(3) / 3))
    query, key = np.random.RandomState(0).standard_normal((2, 5, 6))
    neighbours = [(head[:, 0::2] + 1j * head[:, 1::2]) * turns for head in (query, key)]
    halves = [rope(half_split(head.T, 1).T, np.arange(5), 100.0) for head in (query, key)]
    score = (neighbours[0] @ neighbours[1].conj().T).real
    np.testing.assert_allclose(halves[0] @ halves[1].T, score, atol=1e-12)


@needs_stories
def test_the_reader_understands_the_file(golden):
    config, weights = stories_config(), stories_weights()
    assert sum(weight.size for weight in weights.values()) == config.num_parameters == 260_032
    assert stories_decode([1, 403, 407, 261]) == "Once upon a"
    assert len(golden) == STEPS + 1 and stories_decode(golden) == stories_text()
    best = forward(config, weights, golden).argmax(-1)
    assert best[:-1].tolist() == golden[1:]


@needs_stories
def test_the_full_forward_picks_every_id(model, golden):
    """Each id is the likeliest after the true ids before it, which makes the greedy text the same."""
    logits = run(model, np.array([golden], "int32"))[0]
    assert logits[:-1].argmax(-1).tolist() == golden[1:]
    expected = forward(model.config, stories_weights(), golden)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-4)  # logits reach 20, float32 holds them to 2e-6


@needs_stories
def test_the_cached_forward_picks_every_id_in_parts(model, golden):
    cache, best = model.empty_cache(1, 208), []
    cached_forward = compiled(model.cached_forward)
    for first in (0, 67, 134):
        tokens = np.array([golden[first : first + 67]], "int32")
        logits, cache = cached_forward(tokens, cache, slot=first, mask=causal_mask(first, 67, 208))
        best += to_numpy(logits)[0].argmax(-1).tolist()
    assert best[:-1] == golden[1:]


@needs_stories
def test_the_tokenizer_made_of_tok512_writes_and_reads_as_llama2c(golden):
    tokenizer = Tokenizer(stories_tokenizer_proto())
    assert tokenizer.vocab_size == 512 == len(stories_pieces())
    assert tokenizer.decode(golden) == stories_text()
    example = stories_golden()[1]
    assert [START, *tokenizer.encode(example["prompt"])] == example["prompt_ids"]


@needs_stories
def test_a_run_directory_prints_the_text(model, tmp_path):
    checkpoint.save(tmp_path / "stories", model, Tokenizer(stories_tokenizer_proto()))
    run_directory = checkpoint.load(tmp_path / "stories")
    assert run_directory.model.config == stories_config()
    engine = KerasEngine(run_directory.model, context_length=208)
    ids = generate(engine, [[START]], max_new_tokens=STEPS)[0]
    assert run_directory.tokenizer.decode([START, *ids]) == stories_text()
