"""Exported encoder-decoders. Referees: the numpy reference, and the plain interpreter of LiteRT."""

import dataclasses

import numpy as np
import pytest
import reference
from ai_edge_litert.interpreter import Interpreter
from exported import TEXTS, exported_run

from smolite import export, generate, verify
from smolite.checkpoint import run as checkpoint
from smolite.checkpoint.weights import assign_weights
from smolite.exporters.edge.names import choose_lengths
from smolite.exporters.litert.engine import TFLiteEngine
from smolite.exporters.litert.flatbuffer import operator_counts, structure_problems
from smolite.exporters.litert.pair_engine import TFLitePairEngine
from smolite.exporters.saved_model.pair_engine import SavedModelPairEngine
from smolite.generation.seq2seq_engine import Seq2SeqEngine
from smolite.models.seq2seq_lm import Seq2SeqLM
from smolite.text.tokenizer import train_tokenizer

SOURCES, SLOTS, START = 20, 9, 2
CONFIG = dataclasses.replace(
    reference.PAIR_CONFIGS["learned"], vocab_size=330, num_query_heads=6, num_key_value_heads=2, num_layers=2, norm_epsilon=1e-5
)
WEIGHTS = reference.random_weights(CONFIG)
TARGET = [4, 8, 15, 16, 23, 42, 99, 7]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with every kind of file, as `export` verifies and leaves them."""
    folder = tmp_path_factory.mktemp("pairs")
    tokenizer = train_tokenizer(TEXTS, folder / "tokenizer.model", vocab_size=330)
    assert tokenizer.start_id == START
    model = Seq2SeqLM(CONFIG)
    assign_weights(model, WEIGHTS)
    path = checkpoint.save(folder / "run", model, tokenizer)
    for format, quantize in (("saved_model", None), ("tflite", None), ("tflite", "int8")):
        export(path, format=format, quantize=quantize, prefill_lengths=[SOURCES], cache_length=SLOTS)
    return path


@pytest.fixture(scope="module")
def engines(run):
    folder = run / "export"
    names = {"saved_model": SavedModelPairEngine, "model.tflite": TFLitePairEngine, "model_int8.tflite": TFLitePairEngine}
    return {name: engine(folder / name, start_id=START) for name, engine in names.items()}


def test_every_row_of_the_verification_passes(run):
    report = verify(run, max_new_tokens=6)
    rows = {row.artifact: row for row in report.rows}
    files = {"saved_model", "model.tflite", "model_int8.tflite", "tokenizer.model"}
    assert report.passed and set(rows) == {"Keras model", "MANIFEST.json"} | files
    for name in ("saved_model", "model.tflite"):
        assert rows[name].tokens == rows[name].num_tokens > 50 and rows[name].logits < 1e-4


@pytest.mark.parametrize("name", ["saved_model", "model.tflite"])
@pytest.mark.parametrize("source", [[5], list(range(11, 11 + SOURCES)), [300, 2, 7]])
def test_logits_equal_the_reference(engines, name, source):
    engine = engines[name]
    found = np.concatenate([engine.start([source]), *(engine.step([index]) for index in TARGET)])
    expected = reference.forward(CONFIG, WEIGHTS, [START, *TARGET], source=source)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)


def test_the_saved_model_serves_the_plain_forward(engines):
    source, tokens = [[300, 2, 7], [5, 6, 9]], [[START, 8], [START, 9]]
    found = engines["saved_model"].forward(np.array(source), np.array(tokens))
    np.testing.assert_allclose(found[1], reference.forward(CONFIG, WEIGHTS, tokens[1], source=source[1]), rtol=0, atol=2e-4)
    plain = engines["saved_model"].forward_logits([300, 2, 7], [8, 9])
    np.testing.assert_allclose(plain, reference.forward(CONFIG, WEIGHTS, [START, 8], source=[300, 2, 7]), rtol=0, atol=2e-4)


def test_greedy_tokens_are_those_of_keras_and_end_with_the_cache(run, engines):
    sources = [[5, 6, 7], list(range(11, 11 + SOURCES))]
    model = checkpoint.load_model(run)
    expected = generate(Seq2SeqEngine(model, start_id=START, target_length=SLOTS), sources, max_new_tokens=99)
    assert [len(ids) for ids in expected] == [SLOTS, SLOTS]
    for name in ("saved_model", "model.tflite"):
        assert generate(engines[name], sources, max_new_tokens=99) == expected
    with pytest.raises(ValueError, match=f"must have a free slot. Received: a step after {SLOTS} tokens in {SLOTS} slots"):
        engines[name].step([5])


def test_int8_logits_are_near(engines):
    found = engines["model_int8.tflite"].start([[300, 2, 7]])
    expected = reference.forward(CONFIG, WEIGHTS, [START], source=[300, 2, 7])
    assert 1e-4 < np.abs(found - expected).max() < 0.5


@pytest.mark.parametrize("name", ["model.tflite", "model_int8.tflite"])
def test_the_file_keeps_the_contract(run, name):
    path = run / "export" / name
    assert structure_problems(path, CONFIG) == []
    interpreter = Interpreter(str(path))
    assert set(interpreter.get_signature_list()) == {"encode", "decode"}
    runners = [interpreter.get_signature_runner(name) for name in ("encode", "decode")]
    details = [part for each in runners for part in (each.get_input_details(), each.get_output_details())]
    encode_in, encode_out, decode_in, decode_out = ({n: tuple(d["shape"]) for n, d in part.items()} for part in details)
    keys, values = ((1, 2, SOURCES, 6), (1, 2, SLOTS, 6)), ((1, 2, 6, SOURCES), (1, 2, 6, SLOTS))
    cross, own = (
        {f"{name}_k_{i}": keys[side] for i in (0, 1)} | {f"{name}_v_{i}": values[side] for i in (0, 1)}
        for side, name in enumerate(("cross_cache", "kv_cache"))
    )
    source_mask = {"source_mask": (1, 1, 1, SOURCES)}
    assert encode_in == {"tokens": (1, SOURCES), **source_mask} and encode_out == cross
    assert decode_in == {"tokens": (1, 1), "input_pos": (1,), "mask": (1, 1, 1, SLOTS), **source_mask, **own, **cross}
    assert decode_out == {**own, "logits": (1, 1, 330)}
    decode = operator_counts(path)["decode"]
    assert decode["FULLY_CONNECTED"] == 9 * 2 + 1 and decode["EMBEDDING_LOOKUP"] == 1


def test_each_engine_refuses_the_files_of_the_other(run, tmp_path_factory):
    with pytest.raises(ValueError, match="of a model without an encoder was expected.*with encode, decode|decode, encode"):
        TFLiteEngine(run / "export" / "model.tflite")
    other = exported_run(tmp_path_factory) / "export" / "model.tflite"
    with pytest.raises(ValueError, match="with the signatures encode and decode was expected. Received: .* with .*prefill_16"):
        TFLitePairEngine(other, start_id=START)


def test_what_cannot_be_exported(run):
    with pytest.raises(ValueError, match="llama.cpp runs Llamas only. Received: a model with .*num_encoder_layers=2"):
        export(run, format="gguf")
    with pytest.raises(ValueError, match=r"An encoder reads sources of one length. Received: `prefill_lengths` \(4, 8\)"):
        export(run, prefill_lengths=[4, 8], overwrite=True)


def test_lengths_by_default():
    assert choose_lengths(CONFIG) == ((24,), 24)
    assert choose_lengths(CONFIG, prefill_lengths=[24], cache_length=9) == ((24,), 9)
