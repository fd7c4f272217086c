"""Drafts from the text so far, checked in one call. Referees: the uncached Keras model, and the engine without drafts."""

import dataclasses

import numpy as np
import pytest
from exported import DRAFTS, SLOTS, exported_run, keras_logits, windowed_file
from test_faults import edit, write_to_the_first_slot

from smolite.checkpoint import run as checkpoint
from smolite.exporters.edge.lookup import Lookup
from smolite.exporters.edge.names import check_drafts, drafts_of, signature_shapes
from smolite.exporters.exporting import export
from smolite.exporters.litert.engine import TFLiteEngine
from smolite.exporters.verification.verification import verify
from smolite.generation.loop import generate
from smolite.generation.sampling import Sampling
from smolite.models.config import PRESETS

CONFIG = PRESETS["smolite-small"]
CHECK = f"verify_{DRAFTS + 1}"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return checkpoint.load(exported_run(tmp_path_factory))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return windowed_file(tmp_path_factory)


@pytest.fixture
def engine(file):
    """An engine that notes the signatures that it runs."""

    class Listening(TFLiteEngine):
        def _run(self, name, *rest):
            self.calls.append(name)
            return super()._run(name, *rest)

    listening = Listening(file)
    listening.calls = []
    return listening


def test_drafts_are_what_followed_the_last_tokens_the_last_time():
    text = Lookup([5, 6, 7, 1, 6, 7, 2, 6])
    assert text.drafts(2) == []
    text.add(7)
    assert text.drafts(2) == [2, 6] and text.drafts(9) == [2, 6, 7] and text.drafts(0) == []


def test_three_tokens_say_more_than_two():
    assert Lookup([5, 6, 7, 1, 4, 6, 7, 2, 5, 6, 7]).drafts(1) == [1]


def test_a_token_said_over_and_over_goes_on():
    assert Lookup([9, 9]).drafts(3) == [] and Lookup([9, 9, 9]).drafts(3) == [9]


@pytest.mark.slow
@pytest.mark.parametrize("start", [1, 7, 20])
def test_logits_are_those_of_the_uncached_model_whether_drafts_are_right_or_wrong(run, engine, start):
    """A phrase comes again and again, at first to its end, then with another."""
    phrase = [41, 42, 43, 44, 45]
    text = [7, *phrase, 46, 47, *phrase, 46, 47, *phrase[:3], 90, 91, *phrase, 92, *phrase, 46, 93, 41, 42, *range(100, 113)]
    assert len(text) == SLOTS
    logits = [engine.start([text[:start]]), *(engine.step([index]) for index in text[start:])]
    np.testing.assert_allclose(np.concatenate(logits), keras_logits(run.model, text)[start - 1 :], atol=1e-4)
    checks = [name for name in engine.calls if name.startswith(CHECK)]
    steps = [name for name in engine.calls if name.startswith("decode")]
    assert len(checks) >= 4 and len(steps) + len(checks) < SLOTS - start
    with pytest.raises(ValueError, match="must have a free slot. Received: a step after 48 tokens in 48 slots"):
        engine.step([1])


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 0.9, "top_k": 3, "repetition_penalty": 1.2}])
def test_answers_are_those_of_an_engine_that_guesses_nothing(engine, file, settings):
    """Answers slide twice out of a full cache."""
    patient = TFLiteEngine(file)
    patient.drafts = 0
    prompts = [[300, 11, 12, 13, 300, 11, 12], [5] * 9]
    arguments = {"max_new_tokens": 70, "sampling": Sampling(**settings, seed=3)}
    assert generate(engine, prompts, **arguments) == generate(patient, prompts, **arguments)
    assert any(name.startswith(CHECK) for name in engine.calls)


@pytest.mark.slow
def test_several_tokens_are_read_at_once_where_they_fit(run, engine):
    ids = np.random.default_rng(2).integers(run.model.config.vocab_size, size=SLOTS).tolist()
    engine.start([ids[: SLOTS - 6]])
    sizes, rest, logits = [], ids[SLOTS - 6 :], []
    while rest:
        logits.append(engine.read(rest))
        sizes.append(len(logits[-1]))
        rest = rest[sizes[-1] :]
    assert sizes == [4, 1, 1]
    np.testing.assert_allclose(np.concatenate(logits), keras_logits(run.model, ids)[-6:], atol=1e-4)


@pytest.mark.slow
def test_verify_tries_what_checks_drafts(run, file, tmp_path):
    settings = {"prompts": [[7] * 3, [7] * 22], "max_new_tokens": 9}
    assert verify(run.path, out=file.parent, **settings).passed
    for name in ("model.tflite", "tokenizer.model", "chat.json"):
        (tmp_path / name).write_bytes(file.with_name(name).read_bytes())
    for key in (CHECK, f"{CHECK}_in_8"):
        edit(file, tmp_path / "model.tflite", lambda model, key=key: write_to_the_first_slot(model, key))
        report = verify(run.path, out=tmp_path, **settings)
        assert any("a cache value differs by" in problem for row in report.rows for problem in row.problems), key


def test_signatures_that_check_drafts():
    shapes = signature_shapes(prefill_lengths=(16,), cache_length=32, windows=(4, 8), drafts=4)
    assert {name for name in shapes if name.startswith("verify")} == {"verify_5", "verify_5_in_8"}
    assert drafts_of(list(shapes)) == 4 and drafts_of(["decode", "prefill_16"]) == 0


@pytest.mark.parametrize("drafts", [-1, 16, 32])
def test_impossible_drafts_are_refused(drafts):
    with pytest.raises(ValueError, match=f"`drafts` must be from 0, for none, to (15|31). Received: {drafts}."):
        check_drafts(CONFIG, drafts, cache_length=64 if drafts == 32 else 16)


def test_drafts_are_refused_where_nothing_uses_them(run):
    pairs = dataclasses.replace(CONFIG, num_encoder_layers=1)
    with pytest.raises(ValueError, match="An encoder-decoder has no drafts. Received: `drafts` 2."):
        check_drafts(pairs, 2, cache_length=64)
    with pytest.raises(ValueError, match="litertlm has no drafts. Received: `drafts` 2. Leave it out"):
        export(run.path, format="litertlm", drafts=2)
