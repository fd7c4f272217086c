"""Faults planted in real exported files, one at a time: `verify` must turn red and say what is wrong. The file alone passes.

Here are faults in weights, graphs and tokenizers; those of files and folders are in tests/exporters/test_manifest.py.
"""

import copy as copies
import dataclasses
import json
import shutil

import numpy as np
import pytest
import sentencepiece
from bundled import small_bundles
from exported import SLOTS, TEXTS, exported_run
from sentencepiece import sentencepiece_model_pb2

from smolite.checkpoint import run as checkpoint
from smolite.exporters.gguf import build as gguf
from smolite.exporters.litert.flatbuffer import operator_name, read_flatbuffer, write_edited
from smolite.exporters.litert.quantization import quantize_tflite
from smolite.exporters.litertlm.build import bundle
from smolite.exporters.verification.verification import verify
from smolite.text.tokenizer import train_tokenizer

QUICK = {"prompts": ["안녕하세요", [5], [7] * 9], "max_new_tokens": 6}
TABLE, QUERY = [330, 40], [72, 40]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return exported_run(tmp_path_factory)


@pytest.fixture(scope="module")
def run(exported):
    return checkpoint.load(exported)


def edit(source, target, change):
    """Writes a .tflite file again, with a change to its contents."""
    data = source.read_bytes()
    model = read_flatbuffer(data)
    change(model)
    target.write_bytes(write_edited(model, data))
    return target


def problems_of(run, folder, **settings):
    report = verify(run.path, out=folder, **(QUICK | settings))
    return {row.artifact: " ".join(row.problems) for row in report.rows if row.problems}


def shape_of(tensor):
    return [] if tensor.shape is None else [int(size) for size in tensor.shape]


def constants(model, shape):
    """The constants of a shape as float32 matrices that can be written to, each once."""
    buffers = {each.buffer for graph in model.subgraphs for each in graph.tensors if shape_of(each) == shape}
    for buffer in sorted(index for index in buffers if model.buffers[index].data is not None):
        model.buffers[buffer].data = model.buffers[buffer].data.copy()
        yield model.buffers[buffer].data.view("float32").reshape(shape)


def swap_heads(model):
    """The first two query heads of every layer."""
    for kernel in constants(model, QUERY):
        kernel[:24] = np.concatenate([kernel[12:24], kernel[:12]])


def swap_rows(model):
    """Two rows of the table, which is the output projection, too."""
    (table,) = constants(model, TABLE)
    table[[270, 300]] = table[[300, 270]]


def turn_otherwise(model):
    """Positions as with a theta of 10,000."""
    (steps,) = constants(model, [6])
    np.testing.assert_allclose(steps, 5e4 ** -(np.arange(6) / 6), rtol=1e-6)
    steps[:] = 1e4 ** -(np.arange(6) / 6)


def add_constant(model, graph, values):
    """A tensor of zeros, ones or the like in a graph; returns its place."""
    kinds = {"float32": 0, "int32": 2}  # of TensorType in TFLite's schema
    tensor, buffer = copies.copy(graph.tensors[0]), copies.copy(model.buffers[0])
    tensor.name, tensor.shape, tensor.shapeSignature = b"constant", np.array(values.shape, "int32"), None
    tensor.type, tensor.buffer, buffer.data = kinds[values.dtype.name], len(model.buffers), values.view("uint8").ravel()
    model.buffers.append(buffer)
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def see_everything(model):
    """Scores are added to zeros in place of the mask."""
    for graph in model.subgraphs:
        mask = next(place for place in graph.inputs if graph.tensors[place].name.split(b":")[0].endswith(b"mask"))
        zeros = add_constant(model, graph, np.zeros(shape_of(graph.tensors[mask]), "float32"))
        for each in graph.operators:
            each.inputs = np.where(np.array(each.inputs) == mask, zeros, each.inputs).astype("int32")


def write_to_the_first_slot(model, key="decode"):
    """Every key and value of a signature goes to slot 0."""
    names = [operator_name(code) for code in model.operatorCodes]
    decode = next(each for each in model.signatureDefs if each.signatureKey.decode() == key)
    graph = model.subgraphs[decode.subgraphIndex]
    first = add_constant(model, graph, np.zeros(4, "int32"))
    for each in graph.operators:
        if names[each.opcodeIndex] == "DYNAMIC_UPDATE_SLICE":
            each.inputs = np.array([*each.inputs[:2], first], "int32")


FAULTS = {
    swap_heads: "a logit differs by",
    swap_rows: "a logit differs by",
    turn_otherwise: "a cache value differs by",
    see_everything: "a logit differs by",
    write_to_the_first_slot: "a cache value differs by",
}


def test_a_file_that_is_written_again_passes(exported, run, tmp_path):
    edit(exported / "export" / "model.tflite", tmp_path / "model.tflite", lambda model: None)
    assert not problems_of(run, tmp_path)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_tflite_file(exported, run, fault, tmp_path):
    edit(exported / "export" / "model.tflite", tmp_path / "model.tflite", fault)
    found = problems_of(run, tmp_path)
    assert list(found) == ["model.tflite"] and FAULTS[fault] in found["model.tflite"]


@pytest.mark.parametrize("fault", [swap_rows, turn_otherwise, write_to_the_first_slot])
def test_the_same_fault_in_a_litertlm_file(exported, run, fault, tmp_path):
    model = edit(exported / "export" / "model.tflite", tmp_path / "faulty.bin", fault)
    bundle(run, model, tmp_path / "model.litertlm", cache_length=SLOTS)
    assert "a log probability differs by" in problems_of(run, tmp_path)["model.litertlm"]


def test_a_bundle_of_the_good_file_passes(run, tmp_path, tmp_path_factory):
    shutil.copy(small_bundles(tmp_path_factory)[1] / "model.litertlm", tmp_path)
    assert not problems_of(run, tmp_path)


def wrong_scales(model):
    """The table's whole numbers of 4 bits are taken for those of 8."""
    tables = [each for graph in model.subgraphs for each in graph.tensors if shape_of(each) == TABLE]
    scaled = {id(each.quantization): each.quantization for each in tables if each.quantization is not None}
    for quantization in scaled.values():
        if quantization.scale is not None:
            quantization.scale = quantization.scale * (7 / 127)


@pytest.mark.slow
def test_a_table_of_four_bits_with_the_scales_of_eight(exported, run, tmp_path):
    """A good file passes by the limits of its way."""
    (tmp_path / "good").mkdir()
    good = tmp_path / "good" / "model_int4_int8.tflite"
    quantize_tflite(exported / "export" / "model.tflite", good, "int4_int8")
    assert not problems_of(run, good.parent)
    edit(good, tmp_path / good.name, wrong_scales)
    assert "its logits are 0.05" in problems_of(run, tmp_path)[good.name]


def test_a_wrong_theta_in_a_gguf_file(run, tmp_path):
    other = run.model.__class__(dataclasses.replace(run.model.config, rope_theta=1e4))
    other.set_weights(run.model.get_weights())
    gguf.build(run.replace(model=other), tmp_path / "model.gguf", quantize=None)
    assert "a logit differs by" in problems_of(run, tmp_path)["model.gguf"]


def test_another_tokenizer_in_a_gguf_file(run, tmp_path):
    other = train_tokenizer([text[::-1] for text in TEXTS], tmp_path / "other.model", vocab_size=330)
    gguf.build(run.replace(tokenizer=other), tmp_path / "model.gguf", quantize=None)
    found = problems_of(run, tmp_path)
    assert (
        list(found) == ["tokenizer in model.gguf"] and "texts have other ids, for example" in found["tokenizer in model.gguf"]
    )


def test_a_gguf_file_that_was_cut_off(run, tmp_path):
    gguf.build(run, tmp_path / "model.gguf", quantize=None)
    data = (tmp_path / "model.gguf").read_bytes()
    (tmp_path / "model.gguf").write_bytes(data[: len(data) // 2])
    assert "llama.cpp refuses it: A whole .gguf file was expected" in problems_of(run, tmp_path)["model.gguf"]


def test_a_tokenizer_without_its_rules(exported, run, tmp_path):
    """The same pieces, but nothing composes Hangul or narrows full width: only awkward texts can tell."""
    shutil.copy(exported / "export" / "model.tflite", tmp_path)
    proto = sentencepiece_model_pb2.ModelProto.FromString(run.tokenizer.guarded_proto)
    proto.normalizer_spec.precompiled_charsmap = b""
    (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    plain = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    assert all(plain.encode(text) == run.tokenizer.encode(text) for text in TEXTS)
    assert "texts have other ids, for example" in problems_of(run, tmp_path)["tokenizer.model"]


def test_a_tokenizer_and_a_chat_file_that_cannot_be_read(exported, run, tmp_path):
    for name in ("model.tflite", "chat.json"):
        shutil.copy(exported / "export" / name, tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not a tokenizer")
    found = problems_of(run, tmp_path)
    assert list(found) == ["tokenizer.model"] and found["tokenizer.model"].startswith("SentencePiece refuses it: ")
    shutil.copy(exported / "export" / "tokenizer.model", tmp_path)
    (tmp_path / "chat.json").write_text(json.dumps({"ids": {}}))
    assert problems_of(run, tmp_path) == {"chat.json": "a client cannot read it: KeyError('opening')"}
