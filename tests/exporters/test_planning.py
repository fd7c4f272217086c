"""Plans. Referees: real exported files, the signatures in them, and figures measured in LiteRT-LM."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from bundled import small_bundles
from exported import LAYERS, PREFILL, ROOT, SLOTS, TEXTS, exported_run, run_apart
from tiny_json import ROLES, trained

from smolite.checkpoint import run as checkpoint
from smolite.data.hub_templates import CHATML
from smolite.exporters.edge.names import DECODE
from smolite.exporters.gguf import build as gguf
from smolite.exporters.litert.flatbuffer import open_flatbuffer
from smolite.exporters.litert.sizes import runtime_memory, tflite_bytes, tflite_weights
from smolite.exporters.litert.ways import WAYS
from smolite.exporters.litertlm.build import bundle
from smolite.exporters.litertlm.form import litertlm_bytes
from smolite.exporters.planning.plan import odd_widths, plan, show_plan
from smolite.exporters.planning.sizes import (
    TokenizerSize,
    cache_bytes,
    matrices,
    tokenizer_size,
)
from smolite.exporters.targets import TARGETS
from smolite.models.causal_lm import CausalLM
from smolite.models.config import PRESETS, ModelConfig
from smolite.text.json_tokenizer import JsonTokenizer
from smolite.text.tokenizer import train_tokenizer

QUANTIZE = """
import sys
from smolite.exporters.litert.quantization import quantize_tflite
for way in sys.argv[3:]:
    quantize_tflite(sys.argv[1], f"{sys.argv[2]}/{way}.tflite", way)
"""
BLOCKY = ModelConfig(
    vocab_size=330, num_layers=2, num_query_heads=4, num_key_value_heads=2, hidden_dim=64, intermediate_dim=96, head_dim=32
)
ODD = dataclasses.replace(BLOCKY, hidden_dim=40)  # what attention and the blocks' outputs read is still a multiple of 32
PAIRS = dataclasses.replace(BLOCKY, num_encoder_layers=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return exported_run(tmp_path_factory)


@pytest.fixture(scope="module")
def planned(run):
    return plan(run, cache_length=SLOTS, prefill_lengths=PREFILL)


@pytest.mark.parametrize("name", ["model.tflite", "model_int8.tflite"])
def test_exported_files_are_as_large_as_planned(run, planned, name):
    assert planned.file(name).num_bytes == pytest.approx((run / "export" / name).stat().st_size, rel=0.01)


def test_files_of_the_other_ways_are_as_large_as_planned(run, planned, tmp_path):
    """At toy size half of a file describes the graph. The widths of the run can't be cut into blocks."""
    ways = [way for way in WAYS if not WAYS[way].block]
    run_apart(QUANTIZE, run / "export" / "model.tflite", tmp_path, *ways)
    assert len(ways) == 4
    for way in ways:
        size = (tmp_path / f"{way}.tflite").stat().st_size
        assert planned.file(f"model_{way}.tflite").num_bytes == pytest.approx(size, rel=0.02)


def test_the_caches_are_those_of_the_signatures(run, planned):
    model = open_flatbuffer(run / "export" / "model.tflite")
    (decode,) = [signature for signature in model.signatureDefs if signature.signatureKey.decode() == DECODE]
    tensors = model.subgraphs[decode.subgraphIndex].tensors
    shapes = [tensors[each.tensorIndex].shape for each in decode.inputs if each.name.startswith(b"kv_cache")]
    assert len(shapes) == 2 * LAYERS
    assert planned.cache_bytes[SLOTS] == sum(4 * int(np.prod(shape)) for shape in shapes)


def test_a_bundle_is_as_large_as_planned(planned, tmp_path_factory):
    _, folder = small_bundles(tmp_path_factory)
    for name in ("model.litertlm", "model_int8.litertlm"):
        pages = (planned.file(name).num_bytes - (folder / name).stat().st_size) / (16 * 1024)
        assert abs(pages) <= 1
    assert litertlm_bytes(100_000, TokenizerSize()) == 149_152 and tokenizer_size(folder) is None


def test_a_bundle_packs_a_tokenizer_json(run, tmp_path):
    """In pages of 16 kB; this one has several, packed one."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(json.loads(trained()), indent=20))
    model, path = run / "export" / "model.tflite", tmp_path / "model.litertlm"
    loaded = checkpoint.load(run)
    tokenizer = JsonTokenizer(tmp_path / "tokenizer.json", roles=ROLES)
    bundle(loaded.replace(tokenizer=tokenizer, template=CHATML), model, path, cache_length=SLOTS)
    size = tokenizer_size(tmp_path)
    assert size.litertlm <= 16 * 1024 < (tmp_path / "tokenizer.json").stat().st_size
    assert litertlm_bytes(model.stat().st_size, size) == path.stat().st_size


@pytest.mark.parametrize("kind", ["sentencepiece", "json"])
@pytest.mark.parametrize("config", [BLOCKY, ODD], ids=["blocks of 32", "hidden_dim 40"])
def test_gguf_files_are_as_large_as_planned(tmp_path, config, kind):
    if kind == "json":
        tokenizer = JsonTokenizer(trained(), roles=ROLES)
    else:
        tokenizer = train_tokenizer(TEXTS, tmp_path / "t.model", vocab_size=330)
    model = CausalLM(dataclasses.replace(config, vocab_size=tokenizer.vocab_size))
    run = checkpoint.load(checkpoint.save(tmp_path / "run", model, tokenizer))
    made = plan(run.path)
    for way, name in TARGETS["gguf"].file_names.items():
        gguf.build(run, tmp_path / name, quantize=way)
        assert made.file(name).num_bytes == pytest.approx((tmp_path / name).stat().st_size, rel=0.03)
    widths = {} if config is BLOCKY else {"hidden_dim": 40}
    assert made.odd_widths == widths and ("`hidden_dim` 40 stay float32" in show_plan(made, bandwidth=26)) == bool(widths)


def test_smollm2_is_as_large_as_measured():
    """The files of the 135M shape. The prototype's, of which three were written down, had the scales of rows twice."""
    config = PRESETS["smollm2-135m"]
    measured = {None: 538.48, "int8": 137.46, "int4": 70.22, "int4_block32": 76.22}
    sizes = {way: tflite_bytes(config, WAYS.get(way), num_signatures=2) / 1e6 for way in measured}
    assert sizes == pytest.approx(measured, rel=0.003)
    scales = 12 * sum(matrix.rows * matrix.times for matrix in matrices(config)) / 1e6
    prototype = {"int8": 139.8, "int4": 72.6, "int4_block32": 76.2}
    twice = {way: sizes[way] + (0 if WAYS[way].block else scales) for way in prototype}
    assert twice == pytest.approx(prototype, rel=0.02)
    assert tflite_weights(config, WAYS["int8"]) == 137_076_480


def test_memory_is_as_measured():
    """Peaks in LiteRT-LM, cache 1,280, one prefill length: of our files, and of the prototype's, which were a little larger."""
    settings = {"prefill_lengths": (128,), "cache_length": 1280}
    memory = {way: runtime_memory(PRESETS["smollm2-135m"], way, **settings) / 1e6 for way in (None, *WAYS)}
    ours = {None: 1664, "int8": 555, "int4": 369, "int4_block32": 388}
    prototype = {None: 1650, "int8": 568, "int4": 387, "int4_block32": 400}
    assert {way: memory[way] for way in ours} == pytest.approx(ours, rel=0.035)
    assert {way: memory[way] for way in prototype} == pytest.approx(prototype, rel=0.08)


def test_a_growing_cache_has_the_weights_packed_once():
    """Peaks in LiteRT-LM of our files after a chat of 257 tokens."""
    made = plan("smollm2-135m", cache_length=272, growing_cache=True)
    for name, megabytes in {"model_int8.litertlm": 402, "model_int4.litertlm": 267}.items():
        assert made.file(name).memory / 1e6 == pytest.approx(megabytes, rel=0.05)
    assert made.file("model_int8.tflite") == plan("smollm2-135m", cache_length=272).file("model_int8.tflite")


@pytest.mark.parametrize(("way", "megabytes"), [(None, 2041), ("int8", 625), ("f16", 2189), ("int4_int8", 417), ("int4", 388)])
def test_each_prefill_length_takes_memory(way, megabytes):
    memory = runtime_memory(PRESETS["smollm2-135m"], way, prefill_lengths=(16, 128), cache_length=512)
    assert memory / 1e6 == pytest.approx(megabytes, rel=0.035)


def test_what_a_token_reads_bounds_the_speed():
    """Of float32 4 bytes a parameter; float16 is widened; and the whole cache, 4 kB a slot of this model."""
    config = PRESETS["smolite-small"]
    made = plan("smolite-small", cache_length=256)
    cache = cache_bytes(config, 256)
    assert cache == 2 * 4 * 2 * 64 * 256 * 4 == made.cache_bytes[256]
    assert made.file("model.tflite").read_bytes == 4 * config.num_parameters + cache
    assert made.file("model_f16.tflite").read_bytes == made.file("model.tflite").read_bytes
    assert made.file("model.gguf").read_bytes == 4 * config.num_parameters and made.file("model.gguf").memory is None
    speed = 10e9 / (4 * config.num_parameters + cache)
    assert f" | {speed:,.0f} |" in show_plan(made, bandwidth=10)


def test_the_tables_can_be_read():
    text = show_plan(plan("smolite-small"), bandwidth=26)
    assert text.startswith("5,048,576 parameters; a cache of 512 tokens, prompts read 16, 128 at a time; without the tokenizer")
    growing = show_plan(plan("smolite-small", growing_cache=True), bandwidth=26)
    assert "prompts read 16, 128 at a time, in .litertlm files at once; without the tokenizer" in growing
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| model")]
    files = [file for format in ("tflite", "litertlm", "gguf") for file in TARGETS[format].file_names.values()]
    assert [row[0].removeprefix("| ") for row in rows] == files and {len(row) for row in rows} == {5}
    assert text.endswith("| 256 | 1.049 |\n| 512 | 2.097 |")


def test_what_is_not_possible_is_said():
    text = show_plan(plan(PAIRS), bandwidth=26)
    assert "Not possible: model.gguf, model_f16.gguf, model_q8_0.gguf, model_q4_0.gguf. llama.cpp runs Llamas only." in text
    assert "LiteRT-LM runs no encoder-decoder." in text and plan(PAIRS).file("model.tflite").num_bytes
    learned = plan(dataclasses.replace(BLOCKY, positions="learned"))
    assert "positions='learned'" in learned.file("model.gguf").problem and not learned.file("model.litertlm").problem
    odd = plan(ODD).file("model_int4_block32.tflite")
    assert odd.num_bytes is None and "multiples of 32. Received: `hidden_dim` 40." in odd.problem


@pytest.mark.parametrize(
    ("config", "widths"),
    [
        (PRESETS["smollm2-135m"], {}),
        (dataclasses.replace(BLOCKY, intermediate_dim=100), {"intermediate_dim": 100}),
        (dataclasses.replace(BLOCKY, head_dim=10), {"num_query_heads · head_dim": 40}),
        (dataclasses.replace(BLOCKY, form="smolite-1", hidden_dim=96), {"hidden_dim / 2": 48}),
    ],
)
def test_odd_widths_are_named(config, widths):
    assert odd_widths(config) == widths


@pytest.mark.parametrize(
    "config", [BLOCKY, PAIRS, dataclasses.replace(BLOCKY, form="smolite-1"), dataclasses.replace(PAIRS, positions="learned")]
)
def test_no_weight_is_counted_twice(config):
    """Beside the matrices only norms, biases and positions are left."""
    others = config.num_parameters - sum(matrix.weights for matrix in matrices(config))
    positions = config.context_length * config.hidden_dim if config.positions == "learned" else 0
    blocks = config.num_layers + config.num_encoder_layers
    assert 0 < others - positions < 12 * blocks * (config.hidden_dim + config.intermediate_dim)
    assert tflite_weights(config, None) == 4 * config.num_parameters


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cache_length": 1024}, "`cache_length` must be from 2 to the context length of the model, 512. Received: 1024"),
        ({"cache_length": 64, "prefill_lengths": [128]}, "`prefill_lengths` must be one or more numbers from 2 to .* 64"),
    ],
)
def test_impossible_lengths_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        plan("smolite-small", **settings)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="A preset .* or a folder with a config.json was expected. Received: smolite-9"):
        plan("smolite-9")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match=rf"{tmp_path}/config.json: .*gpt2"):
        plan(tmp_path)
    with pytest.raises(ValueError, match="`bandwidth` must be a positive number of GB/s. Received: 0"):
        show_plan(plan("smolite-small"), bandwidth=0)


def test_no_backend_is_loaded(run):
    """Nor needed: the command works where Keras cannot be imported."""
    code = "import sys; sys.modules['keras'] = None; from smolite.cli.parser import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, "plan", str(run), "--cache-length", "48", "--prefill-lengths", "4", "16"]
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0 and "prompts read 4, 16 at a time; with the tokenizer" in done.stdout, done.stderr
