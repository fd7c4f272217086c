"""Signatures that look at the first slots of the cache only, and who uses which. Referee: the uncached Keras model."""

import dataclasses

import numpy as np
import pytest
from exported import DRAFTS, LAYERS, PREFILL, SLOTS, WINDOWS, exported_run, follow, keras_logits, windowed_file
from test_exporters import chat
from test_faults import edit, write_to_the_first_slot

from smolite.checkpoint import run as checkpoint
from smolite.exporters.edge.names import choose_windows, signature_shapes, windowed_name, windows_of
from smolite.exporters.exporting import export
from smolite.exporters.litert.engine import TFLiteEngine
from smolite.exporters.litert.flatbuffer import operator_counts, structure_problems
from smolite.exporters.planning.plan import plan
from smolite.exporters.verification.verification import verify
from smolite.models.config import PRESETS

CONFIG = PRESETS["smolite-small"]
PAIRS = dataclasses.replace(CONFIG, num_encoder_layers=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return checkpoint.load(exported_run(tmp_path_factory))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return windowed_file(tmp_path_factory)


@pytest.fixture(scope="module")
def text(run):
    return np.random.default_rng(1).integers(run.model.config.vocab_size, size=SLOTS).tolist()


@pytest.mark.parametrize("split", [1, 5, 8, 9, 18, 21, SLOTS])
@pytest.mark.slow
def test_any_split_gives_the_logits_of_the_uncached_model(run, file, text, split):
    np.testing.assert_allclose(follow(TFLiteEngine(file), text, split), keras_logits(run.model, text)[split - 1 :], atol=1e-4)


@pytest.mark.slow
def test_the_least_window_that_holds_the_tokens_is_looked_at(file, text):
    calls = []

    class Listening(TFLiteEngine):
        def _run(self, name, tokens, positions, mask):
            calls.append((name, mask.shape))
            return super()._run(name, tokens, positions, mask)

    follow(Listening(file), text, 6)
    few, more, all_of_them = (1, 1, 1, 8), (1, 1, 1, 20), (1, 1, 1, SLOTS)
    assert calls[:2] == [("prefill_16_in_20", (1, 1, 16, 20)), ("decode_in_8", few)]
    assert calls[2:] == [("decode_in_8", few)] * 2 + [("decode_in_20", more)] * 12 + [("decode", all_of_them)] * (SLOTS - 20)


@pytest.mark.slow
def test_a_window_reads_nothing_behind_it(file, text):
    """What a longer text left in the slots behind the window does not change a bit."""
    engine = TFLiteEngine(file)
    expected = follow(engine, text[:20], 3)
    engine.start([text])
    np.testing.assert_array_equal(follow(engine, text[:20], 3), expected)


@pytest.mark.slow
def test_the_file_has_the_signatures_of_each_window_over_one_table(run, file):
    counts = operator_counts(file)
    looks = {"windows": WINDOWS, "drafts": DRAFTS}
    shapes = signature_shapes(prefill_lengths=PREFILL, cache_length=SLOTS, **looks)
    assert set(counts) == set(shapes) and "prefill_16_in_8" not in shapes and structure_problems(file, run.model.config) == []
    slices = counts["decode_in_8"] - counts["decode"]
    assert counts["decode"] <= counts["decode_in_8"] and slices.total() == 2 * LAYERS
    planned = plan(run.path, prefill_lengths=PREFILL, cache_length=SLOTS, **looks)
    assert planned.file("model.tflite").num_bytes == pytest.approx(file.stat().st_size, rel=0.06)
    assert planned.file("model.litertlm") == plan(run.path, prefill_lengths=PREFILL, cache_length=SLOTS).file("model.litertlm")


@pytest.mark.slow
def test_the_client_uses_windows(run, file):
    """It says what it says with the file that has none."""
    settings = "--max-new-tokens", 6, "--prompt", "안녕하세요", "<end> 뭐 먹을까?"
    assert chat(file, *settings) == chat(run.path / "export" / "model.tflite", *settings)


@pytest.mark.slow
def test_verify_tries_every_window(run, file, tmp_path):
    settings = {"prompts": [[7] * 3, [7] * 12], "max_new_tokens": 4}
    assert verify(run.path, out=file.parent, **settings).passed
    for name in ("model.tflite", "tokenizer.model", "chat.json"):
        (tmp_path / name).write_bytes(file.with_name(name).read_bytes())
    for key in ("decode_in_8", "decode_in_20"):
        edit(file, tmp_path / "model.tflite", lambda model, key=key: write_to_the_first_slot(model, key))
        report = verify(run.path, out=tmp_path, **settings)
        assert any("a cache value differs by" in problem for row in report.rows for problem in row.problems)


def test_the_default_windows_are_a_quarter_and_half_of_a_long_cache():
    defaults = {1280: (320, 640), 1024: (256, 512), 512: (128, 256), 256: (128,), 160: ()}
    assert {length: choose_windows(CONFIG, cache_length=length) for length in defaults} == defaults
    assert choose_windows(CONFIG, cache_length=64, windows=[32, 8, 8]) == (8, 32)
    assert choose_windows(CONFIG, cache_length=1024, windows=[]) == () == choose_windows(PAIRS, cache_length=1024)


def test_no_window_is_narrower_than_what_a_signature_reads():
    shapes = signature_shapes(prefill_lengths=(16,), cache_length=32, windows=(8,))
    assert shapes == {"prefill_16": (16, 32), "decode": (1, 32), "decode_in_8": (1, 8)}
    assert windows_of([windowed_name("decode", 256), "decode", "decode_in_128", "prefill_16_in_64"]) == (128, 256)


@pytest.mark.parametrize("windows", [[1], [64], [8, 65]])
def test_impossible_windows_are_refused(windows):
    with pytest.raises(ValueError, match=r"`windows` must be numbers from 2 to less than the cache length, 64. Received: "):
        choose_windows(CONFIG, cache_length=64, windows=windows)


def test_windows_are_refused_where_nothing_uses_them(run):
    with pytest.raises(ValueError, match="An encoder-decoder has no windows. Received: `windows` "):
        choose_windows(PAIRS, cache_length=64, windows=[8])
    with pytest.raises(ValueError, match="litertlm has no windows. Received: `windows`"):
        export(run.path, format="litertlm", windows=[8])


def test_a_growing_cache_is_refused_where_it_cannot_be(run):
    with pytest.raises(
        ValueError, match=r"tflite has no growing cache\. Received: `growing_cache`\. Leave it out, or export to"
    ):
        export(run.path, growing_cache=True)
    with pytest.raises(ValueError, match=r"a prompt is read at once, whatever its length\. Received: `prefill_lengths` \(8,\)"):
        export(run.path, format="litertlm", growing_cache=True, prefill_lengths=(8,))
