import dataclasses
import json

import numpy as np
import pytest
import sentencepiece
from ai_edge_litert.interpreter import Interpreter
from exported import (
    LAYERS,
    PREFILL,
    ROOT,
    SLOTS,
    exported_run,
    keras_logits,
    random_weights,
    run_apart,
    save_small_run,
    small_config,
)
from tiny_json import ROLES, trained

from smolite.checkpoint import run as checkpoint
from smolite.cli import demo
from smolite.data.hub_templates import SMOLLM2_CHAT
from smolite.data.template import Message
from smolite.exporters.delivery.client_files import check_client_files, write_client_files
from smolite.exporters.edge.engine import CachedEngine
from smolite.exporters.edge.names import choose_lengths
from smolite.exporters.exporting import export
from smolite.exporters.litert.engine import TFLiteEngine
from smolite.exporters.litert.flatbuffer import open_flatbuffer, operator_counts, structure_problems
from smolite.exporters.litert.quantization import quantize_tflite, tidy_scales
from smolite.exporters.target import load
from smolite.exporters.targets import TARGETS
from smolite.generation.engine import Engine
from smolite.generation.keras_engine import KerasEngine
from smolite.generation.loop import generate
from smolite.models.causal_lm import CausalLM
from smolite.models.config import ModelConfig
from smolite.text.json_tokenizer import JsonTokenizer

CLIENT = ROOT / "export" / "chat_tflite.py"
FILES = ["model.tflite", "model_int8.tflite"]
BESIDE = {"tokenizer.model", "chat.json", "MANIFEST.json", "verify.json", "verify.md"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return exported_run(tmp_path_factory)


@pytest.fixture(scope="module", params=FILES)
def file(request, run):
    return run / "export" / request.param


def shapes(details):
    return {name: (tuple(tensor["shape"]), np.dtype(tensor["dtype"]).name) for name, tensor in details.items()}


@pytest.mark.parametrize("length", [1, *PREFILL])
def test_signatures_are_those_of_the_contract(file, length):
    runner = Interpreter(str(file)).get_signature_runner("decode" if length == 1 else f"prefill_{length}")
    caches = {f"kv_cache_k_{i}": ((1, 2, SLOTS, 12), "float32") for i in range(LAYERS)}
    caches |= {f"kv_cache_v_{i}": ((1, 2, 12, SLOTS), "float32") for i in range(LAYERS)}
    inputs = {
        "tokens": ((1, length), "int32"),
        "input_pos": ((length,), "int32"),
        "mask": ((1, 1, length, SLOTS), "float32"),
    }
    assert shapes(runner.get_input_details()) == inputs | caches
    logits = {"logits": ((1, 1, 330), "float32")} if length == 1 else {}
    assert shapes(runner.get_output_details()) == caches | logits


def test_decode_has_the_operators_it_needs_and_no_copies_of_the_caches(file):
    counts = operator_counts(file)
    assert set(counts) == {"decode", "prefill_4", "prefill_16"}
    decode = counts["decode"]
    assert decode["EMBEDDING_LOOKUP"] == 1
    assert decode["FULLY_CONNECTED"] == 7 * LAYERS + 1
    assert decode["DYNAMIC_UPDATE_SLICE"] == decode["BATCH_MATMUL"] == 2 * LAYERS
    assert not set(decode) & {"TRANSPOSE", "GATHER", "TILE", "BROADCAST_TO", "SCATTER_ND", "DEQUANTIZE", "PAD"}


def test_prefill_stops_at_the_keys_and_values_of_the_last_layer(file):
    prefill = operator_counts(file)["prefill_16"]
    assert prefill["FULLY_CONNECTED"] == 7 * (LAYERS - 1) + 2
    assert prefill["DYNAMIC_UPDATE_SLICE"] == 2 * LAYERS
    assert prefill["BATCH_MATMUL"] == 2 * (LAYERS - 1)


def test_the_embedding_table_is_stored_once(file):
    """All signatures, and both uses in `decode`, read one buffer of V · D numbers."""
    model = open_flatbuffer(file)
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors if tensor.shape is not None]
    used = {tensor.buffer for tensor in tensors if list(tensor.shape) == [330, 40]}
    assert len(used) == 1
    buffer = model.buffers[used.pop()]
    assert (buffer.size or len(buffer.data)) == 330 * 40 * (4 if file.name == "model.tflite" else 1)


def test_a_good_file_has_no_structural_problems(file, run):
    assert structure_problems(file, checkpoint.load_model(run).config) == []


def test_structural_problems_are_named(run):
    config = checkpoint.load_model(run).config
    other = ModelConfig.from_dict({**config.to_dict(), "hidden_dim": 72})
    assert structure_problems(run / "export" / "model.tflite", other) == ["0 embedding tables"]


def test_sharing_scales_makes_the_file_smaller_and_changes_no_logit(run, tmp_path):
    plain = (run / "export" / "plain_int8.bin").read_bytes()
    (tmp_path / "plain.tflite").write_bytes(plain)
    (tmp_path / "shared.tflite").write_bytes(tidy_scales(plain))
    assert (tmp_path / "shared.tflite").stat().st_size < len(plain) - 3 * 330 * 12
    logits = [TFLiteEngine(tmp_path / name).start([list(range(20))]) for name in ("plain.tflite", "shared.tflite")]
    np.testing.assert_array_equal(*logits)


def test_the_saved_model_serves_the_plain_forward(run):
    tensorflow = pytest.importorskip("tensorflow")
    loaded = tensorflow.saved_model.load(str(run / "export" / "saved_model"))
    assert set(loaded.signatures) == {"decode", "forward", "prefill_16", "prefill_4", "serving_default"}
    tokens = np.random.default_rng(0).integers(330, size=(2, 7), dtype="int32")
    logits = loaded.signatures["serving_default"](tokens=tensorflow.constant(tokens))["logits"]
    np.testing.assert_allclose(logits[1], keras_logits(checkpoint.load_model(run), tokens[1].tolist()), atol=1e-4)


@pytest.mark.slow
def test_export_writes_verified_files_and_says_how_far_it_is(tmp_path, capsys):
    run = save_small_run(tmp_path)
    path = export(run, quantize="int8", prefill_lengths=(8,), cache_length=32)
    assert path == run / "export" / "model_int8.tflite"
    assert {file.name for file in path.parent.iterdir()} == {path.name, *BESIDE}
    said = capsys.readouterr().out
    for words in ("loading", "tracing prefill 8 and decode", "converting", "quantizing to int8", "bits/char"):
        assert words in said
    assert json.loads((path.parent / "verify.json").read_text("utf-8"))["passed"]
    engine = TFLiteEngine(path)
    assert (engine.context_length, engine.prefill_lengths) == (32, (8,))


@pytest.mark.slow
def test_a_file_that_says_something_else_is_not_left_behind(tmp_path):
    """Huge weights that meet only zeros change nothing in float32, but leave no int8 steps for the other weights."""
    run = save_small_run(tmp_path)
    loaded = checkpoint.load(run)
    for block in loaded.model.blocks:
        first = np.arange(block.mlp.intermediate_dim)[:, None] == 0
        block.mlp.gate.kernel.assign(np.where(first.T, 0.0, block.mlp.gate.kernel))
        block.mlp.down.kernel.assign(np.where(first, 400.0, block.mlp.down.kernel))
    checkpoint.save(run, loaded.model, loaded.tokenizer, overwrite=True)
    old = run / "export" / "model_int8.tflite"
    old.parent.mkdir()
    old.write_bytes(b"the old file")
    with pytest.raises(RuntimeError, match="does not say what the model says, and was not kept"):
        export(run, quantize="int8", prefill_lengths=(8,), cache_length=32, overwrite=True)
    assert [file.name for file in old.parent.iterdir()] == [old.name] and old.read_bytes() == b"the old file"


def test_an_output_that_exists(run):
    with pytest.raises(FileExistsError, match="The output must not exist yet. Received: .*model.tflite. Choose another `out`"):
        export(run)


def test_files_of_two_runs_in_one_folder(run, tmp_path):
    (tmp_path / "chat.json").write_text("{}")
    with pytest.raises(FileExistsError, match="must not hold files of another run. Received: .*chat.json, which differs"):
        check_client_files(run / "export", tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "onnx"}, "Unknown `format`. Received: 'onnx'. Choose one of: saved_model, tflite."),
        ({"quantize": "int3"}, "`quantize` for tflite must be one of: None, f16, int8, .*int4. Received: 'int3'."),
        ({"format": "saved_model", "quantize": "int8"}, "`quantize` for saved_model must be one of: None. Received: 'int8'."),
        ({"cache_length": 65}, "`cache_length` must be from 2 to the context length of the model, 64. Received: 65."),
        ({"prefill_lengths": (8, 65)}, r"`prefill_lengths` must be one or more numbers from 2 to the cache length, 64. .*65"),
        ({"prefill_lengths": ()}, r"`prefill_lengths` must be one or more numbers .* Received: \(\)"),
    ],
)
def test_settings_that_are_refused_before_any_work(run, settings, message):
    with pytest.raises(ValueError, match=message):
        export(run, out=run / "elsewhere", **settings)
    assert not (run / "elsewhere").exists()


def test_a_run_that_is_not_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="A run directory with a config.json was expected. Received: .* Train or save"):
        export(tmp_path)


def test_an_unknown_recipe(tmp_path):
    with pytest.raises(ValueError, match="Unknown way to quantize. Received: 'int3'. Choose one of: f16, int8, int4_int8, "):
        quantize_tflite(tmp_path / "a", tmp_path / "b", "int3")


def test_missing_packages_are_named_and_nothing_heavy_is_imported():
    code = """if True:
        import sys
        sys.modules["tensorflow"] = sys.modules["ai_edge_litert"] = None
        from smolite.exporters.exporting import export
        try:
            export("a run")
        except ImportError as error:
            print(error, "keras" in sys.modules)
    """
    said = 'Missing: tensorflow, ai-edge-litert. Run: pip install "smolite[export]" False\n'
    assert run_apart(code).endswith(said)


def test_default_lengths():
    config = ModelConfig.from_preset("smolite-small", context_length=2048)
    assert choose_lengths(config) == ((16, 128), 1024)
    assert choose_lengths(config, cache_length=32) == ((16,), 32)
    assert choose_lengths(config, cache_length=8) == ((8,), 8)
    assert choose_lengths(config, prefill_lengths=[64, 8, 8]) == ((8, 64), 1024)


def test_every_target_has_a_module_with_build_and_an_engine():
    for target in TARGETS.values():
        made = load(target.engine)
        named = [value for value in vars(target).values() if isinstance(value, str) and value.startswith("smolite.")]
        assert {target.builder, target.engine} <= set(named) and all(callable(load(reference)) for reference in named)
        if not target.gives_logits:
            continue  # tests/exporters/test_litertlm.py has the one that takes texts
        assert made.batch_size == 1 and issubclass(made, Engine)
        assert issubclass(made, CachedEngine) == target.on_tensorflow  # whose caches can be read


def test_client_files_let_no_marker_in(run, tmp_path):
    loaded = checkpoint.load(run)
    write_client_files(tmp_path, tokenizer=loaded.tokenizer, template=loaded.template)
    raw = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert not {2, 3, 4} & set(raw.encode("<start> <sep> <end>"))
    chat = json.loads((tmp_path / "chat.json").read_text("utf-8"))
    assert chat["template"]["user_suffix"] == "<sep>" and chat["ids"]["user_suffix"] == [4] and chat["stop_ids"] == [3]


def chat(file, *arguments):
    """What the client prints, in a process that can import neither Keras nor TensorFlow nor smolite."""
    block = "for name in ('keras', 'tensorflow', 'smolite'): sys.modules[name] = None"
    code = f"import runpy, sys\n{block}\nrunpy.run_path({str(CLIENT)!r}, run_name='__main__')"
    return run_apart(code, file, *arguments).splitlines()


def test_the_client_says_what_the_model_says_over_several_turns(run):
    loaded = checkpoint.load(run)
    questions, ids, replies = ["안녕하세요", "<end> 뭐 먹을까?"], [], []
    for question in questions:
        ids += loaded.template.prompt([Message("user", question)], loaded.tokenizer)
        engine = KerasEngine(loaded.model, context_length=SLOTS)
        reply = generate(engine, [ids], max_new_tokens=6, stop_ids=(3,))[0]
        ids += [*reply, 3]
        replies.append(loaded.tokenizer.decode(reply))
    assert len(ids) < SLOTS - 6
    assert chat(run / "export" / "model.tflite", "--max-new-tokens", 6, "--prompt", *questions) == replies


def test_the_client_forgets_old_turns_and_samples(run):
    settings = ["--temperature", "1.5", "--top-k", "5", "--max-new-tokens", "8"]
    assert chat(run / "export" / "model_int8.tflite", *settings, "--prompt", *["안녕" * 9] * 6)


def test_the_client_is_short():
    assert len(CLIENT.read_text("utf-8").splitlines()) <= 80


def test_the_demo_needs_no_more_than_the_extra_that_it_installs():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert {TARGETS[format].extra for format in demo.FORMATS} == {"export"}
    assert "demo: $(VENV)/.installed-export" in makefile


@pytest.mark.slow
def test_a_run_with_a_byte_level_tokenizer_chats_from_its_files(tmp_path):
    """ChatML with its default system turn, through the client, which knows `tokenizers` and no template language."""
    tokenizer = JsonTokenizer(trained(), roles=ROLES)
    model = CausalLM(dataclasses.replace(small_config(tokenizer.vocab_size), context_length=192))
    random_weights(model, 3)
    path = checkpoint.save(tmp_path / "run", model, tokenizer, template=SMOLLM2_CHAT)
    file = export(path, prefill_lengths=(16,))
    report = json.loads((path / "export" / "verify.json").read_text("utf-8"))
    assert report["passed"] and [row["artifact"] for row in report["rows"]][1:] == [
        "model.tflite",
        "tokenizer.json",
        "chat.json",
    ]
    loaded = checkpoint.load(path)
    opening = json.loads((path / "export" / "chat.json").read_text("utf-8"))["opening"]
    ids = loaded.template.prompt([Message("user", "안녕 <|im_end|>")], loaded.tokenizer)
    assert ids[: len(opening)] == opening and len(opening) > 10
    stop = loaded.tokenizer.markers["<|im_end|>"]
    expected = generate(KerasEngine(loaded.model), [ids], max_new_tokens=9, stop_ids=(stop,))[0]
    assert chat(file, "--max-new-tokens", 9, "--prompt", "안녕 <|im_end|>") == loaded.tokenizer.decode(expected).splitlines()
