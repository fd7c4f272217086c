"""Every way to quantize, read back from its file: one table, the bits that were asked for, logits near the model's."""

import keras
import numpy as np
import pytest
from exported import TEXTS, keras_logits, random_weights, run_apart, small_config
from test_faults import constants as constants_of
from test_faults import edit

from smolite.checkpoint import run as checkpoint
from smolite.exporters.exporting import export
from smolite.exporters.litert.engine import TFLiteEngine
from smolite.exporters.litert.flatbuffer import open_flatbuffer, operator_counts, operator_name, structure_problems
from smolite.exporters.litert.quantization import quantize_tflite
from smolite.exporters.litert.ways import WAYS, check_way
from smolite.exporters.target import Limits
from smolite.exporters.targets import TARGETS, target_files
from smolite.models.causal_lm import CausalLM
from smolite.models.config import ModelConfig
from smolite.text.tokenizer import train_tokenizer

CONVERT = """
import sys
from pathlib import Path
from smolite.checkpoint import run as checkpoint
from smolite.exporters.litert import build as tflite
from smolite.exporters.litert.quantization import quantize_tflite
from smolite.exporters.litert.ways import WAYS

run, out = map(Path, sys.argv[1:])
tflite.build(checkpoint.load_model(run), out / "model.tflite", quantize=None, prefill_lengths=(4,), cache_length=48)
for way in WAYS:
    quantize_tflite(out / "model.tflite", out / f"model_{way}.tflite", way)
"""
TYPES = {"f16": 1, "int8": 9, "int4": 17}  # of TensorType in TFLite's schema
BITS = {1: 16, 9: 8, 17: 4}
IDS = list(range(300, 320))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose widths are multiples of 32, and differ: 64 hidden, 96 in the heads, 160 in between."""
    folder = tmp_path_factory.mktemp("quantization")
    tokenizer = train_tokenizer(TEXTS, folder / "tokenizer.model", vocab_size=330)
    shape = small_config(tokenizer.vocab_size).to_dict() | {"num_layers": 2, "hidden_dim": 64, "intermediate_dim": 160}
    model = CausalLM(ModelConfig.from_dict(shape | {"head_dim": 16}))
    random_weights(model, 0)
    path = checkpoint.save(folder / "run", model, tokenizer)
    (path / "export").mkdir()
    run_apart(CONVERT, path, path / "export", KERAS_BACKEND="tensorflow")
    return path


@pytest.fixture(scope="module")
def model(run):
    return checkpoint.load_model(run)


def constants(file, operator):
    """The tensors that all operators of a kind read as their weights, with the file's model; through a DEQUANTIZE, too."""
    opened = open_flatbuffer(file)
    names = [operator_name(code) for code in opened.operatorCodes]
    found = []
    for graph in opened.subgraphs:
        made = {each.outputs[0]: each.inputs[0] for each in graph.operators if names[each.opcodeIndex] == "DEQUANTIZE"}
        weights = [each.inputs[1] for each in graph.operators if names[each.opcodeIndex] == operator]
        found += [graph.tensors[made.get(index, index)] for index in weights]
    return opened, found


def numbers(file, opened, tensor):
    """The whole numbers or halves of a constant, (rows, columns), from the bytes of the file."""
    buffer = opened.buffers[tensor.buffer]
    data = np.fromfile(file, "uint8", buffer.size, offset=buffer.offset) if buffer.size else np.asarray(buffer.data, "uint8")
    if tensor.type == TYPES["int4"]:
        low, high = (data << 4).view("int8") >> 4, data.view("int8") >> 4
        return np.stack([low, high], -1).reshape(tensor.shape)
    return data.view("int8" if tensor.type == TYPES["int8"] else "float16").reshape(tensor.shape)


def values(file, opened, tensor, graph=0):
    """The weights that the numbers and scales of a constant stand for, and the scales, both (rows, columns)."""
    found = numbers(file, opened, tensor).astype("float32")
    if tensor.type == TYPES["f16"]:
        return found, np.abs(found) * 2.0**-10 + 1e-7
    if tensor.quantization.scale is not None:
        scales = np.asarray(tensor.quantization.scale)[:, None]
    else:
        place = opened.subgraphs[graph].tensors[tensor.quantization.details.scales]
        scales = numbers(file, opened, place).astype("float32")
    scales = np.repeat(scales, found.shape[1] // scales.shape[1], 1)
    return found * scales, scales


@pytest.mark.parametrize("way", WAYS)
def test_the_contract_holds_and_the_table_is_stored_once(run, model, way):
    file = run / "export" / f"model_{way}.tflite"
    assert structure_problems(file, model.config) == []
    counts = operator_counts(file)
    assert set(counts) == {"prefill_4", "decode"}
    assert counts["decode"]["EMBEDDING_LOOKUP"] == 1 and counts["decode"]["FULLY_CONNECTED"] == 7 * 2 + 1
    assert (counts["decode"]["DEQUANTIZE"] > 0) == (way == "f16")
    opened, tables = constants(file, "EMBEDDING_LOOKUP")
    heads = [tensor for tensor in constants(file, "FULLY_CONNECTED")[1] if list(tensor.shape) == [330, 64]]
    assert len(tables) == 2 and len(heads) == 1  # prefill has no head
    assert len({tensor.buffer for tensor in [*tables, *heads]}) == 1
    size = opened.buffers[tables[0].buffer].size or len(opened.buffers[tables[0].buffer].data)
    assert size == 330 * 64 * WAYS[way].table_bits // 8


@pytest.mark.parametrize("way", WAYS)
def test_every_matrix_has_its_bits_and_is_stored_once(run, way):
    file = run / "export" / f"model_{way}.tflite"
    opened, weights = constants(file, "FULLY_CONNECTED")
    bits = {(list(tensor.shape) == [330, 64]): BITS[tensor.type] for tensor in weights}
    assert bits == {False: WAYS[way].bits, True: WAYS[way].table_bits}
    assert len({tensor.buffer for tensor in weights}) == 7 * 2 + 1
    assert {tensor.type for tensor in weights} <= set(BITS)


@pytest.mark.parametrize("way", WAYS)
def test_the_table_is_the_models_to_half_a_step(run, model, way):
    """Weights that clip may be further off: no more than one of a hundred, and only in four bits."""
    file = run / "export" / f"model_{way}.tflite"
    opened, tables = constants(file, "EMBEDDING_LOOKUP")
    found, scales = values(file, opened, tables[0])
    steps = np.abs(found - keras.ops.convert_to_numpy(model.token_embedding.embeddings)) / scales
    assert np.mean(steps > 0.501) <= (0.02 if WAYS[way].table_bits == 4 else 0)
    if WAYS[way].table_bits < 16:
        assert len(np.unique(scales[0])) == (2 if WAYS[way].block else 1)


def test_fewer_bits_are_further_from_the_model(run, model):
    expected = keras_logits(model, IDS)[-1]
    far = {}
    for way in WAYS:
        engine = TFLiteEngine(run / "export" / f"model_{way}.tflite")
        far[way] = float(np.abs(engine.start([IDS])[0] - expected).max() / np.abs(expected).max())
        engine.close()
    assert far["f16"] < 0.005 < far["int8"] < 0.05 < far["int4_int8"] < 0.7
    assert far["int4_int8"] < far["int4"]


def test_fewer_bits_make_smaller_files(run):
    sizes = {way: (run / "export" / f"model_{way}.tflite").stat().st_size for way in WAYS}
    assert sizes["f16"] > sizes["int8"] > sizes["int4_int8"] > max(sizes["int4"], sizes["int4_block32"])


def test_each_file_has_limits():
    limits = {name: file.limits for name, file in target_files().items()}
    assert {name for name, limit in limits.items() if limit is None} == {target.file_names[None] for target in TARGETS.values()}
    assert limits["model_int8.tflite"].most_bits == 0.01 and limits["model_int4.litertlm"].least_agreement == 0.5
    assert limits["model_q4_0.gguf"] == Limits(most_bits=0.15, least_agreement=0.5) and limits["model_q8_0.gguf"] == Limits()


def test_widths_that_blocks_do_not_divide(run, tmp_path):
    config = ModelConfig.from_dict(checkpoint.load_config(run).to_dict() | {"hidden_dim": 40, "intermediate_dim": 56})
    message = "int4_block32 needs widths that are multiples of 32. Received: `hidden_dim` 40, `intermediate_dim` 56. Choose"
    with pytest.raises(ValueError, match=message):
        check_way("int4_block32", config)
    check_way("int4", config)
    (tmp_path / "run").mkdir()
    odd = (run / "config.json").read_text("utf-8").replace('"hidden_size": 64', '"hidden_size": 40')
    (tmp_path / "run" / "config.json").write_text(odd)
    with pytest.raises(ValueError, match="Received: `hidden_dim` 40. Choose another way: f16, int8, int4_int8, int4."):
        export(tmp_path / "run", quantize="int4_block32")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["f16", "int4_int8", "int4_block32", "int4"])
def test_a_bundle_runs_in_litert_lm(run, tmp_path, way):
    litert_lm = pytest.importorskip("litert_lm")
    from smolite.exporters.litertlm.build import bundle

    bundle(checkpoint.load(run), run / "export" / f"model_{way}.tflite", tmp_path / "a.litertlm", cache_length=48)
    settings = {"prefill_tokens": 8, "decode_tokens": 8, "cache_dir": ":nocache"}
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)
    speeds = litert_lm.Benchmark(str(tmp_path / "a.litertlm"), backend=litert_lm.Backend.CPU(), **settings).run()
    assert speeds.last_decode_token_count > 0


@pytest.mark.parametrize("way", WAYS)
def test_rows_of_zeros_can_be_run(run, tmp_path, way):
    """As of tokens that were never trained. Their scale would be 0, which XNNPACK refuses when the file is first run."""

    def clear(model):
        for table in constants_of(model, [330, 64]):
            table[300:302] = 0

    float_path, path = edit(run / "export" / "model.tflite", tmp_path / "model.tflite", clear), tmp_path / f"model_{way}.tflite"
    quantize_tflite(float_path, path, way)
    logits = TFLiteEngine(path).start([[5, 300, 301, 7, 8]])
    assert np.isfinite(logits).all() and not logits[0, 300:302].any() and np.abs(logits).max() > 0.1
