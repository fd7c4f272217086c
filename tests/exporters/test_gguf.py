"""GGUF files. Referees: llama.cpp, which reads them, the numpy reference, and GGUF's own reader."""

import dataclasses
import json

import gguf
import numpy as np
import pytest
import reference
from exported import TEXTS, random_weights
from reference import AWKWARD_CONFIGS
from stories import FOLDER, REASON, stories_config, stories_golden, stories_tokenizer_proto, stories_weights
from tiny_json import CORPUS, ROLES, trained

from smolite.checkpoint import run as checkpoint
from smolite.checkpoint.weights import assign_weights
from smolite.data.template import Message
from smolite.exporters.exporting import export
from smolite.exporters.gguf.build import build, interleave
from smolite.exporters.gguf.engine import LlamaCppEngine
from smolite.exporters.verification.verification import verify
from smolite.generation.keras_engine import KerasEngine
from smolite.generation.loop import generate
from smolite.models.causal_lm import CausalLM
from smolite.models.config import ModelConfig, RopeScaling
from smolite.text.json_tokenizer import JsonTokenizer
from smolite.text.tokenizer import Tokenizer, train_tokenizer

BLOCKY = ModelConfig(  # every row is a multiple of 32, as quantizing needs
    vocab_size=330,
    num_layers=2,
    num_query_heads=4,
    num_key_value_heads=2,
    hidden_dim=64,
    intermediate_dim=96,
    head_dim=32,
    context_length=64,
    rope_theta=1e5,
)
STRINGS = [*TEXTS, "ㅋㅋㅋ 첫 줄\n둘째  줄\t끝", "<start> 표시 <end>", "😀 é 12345", " 앞뒤 ", "\n\n"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(TEXTS, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model", vocab_size=330)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer):
    model = CausalLM(BLOCKY)
    random_weights(model, 3)
    return checkpoint.load(checkpoint.save(tmp_path_factory.mktemp("gguf") / "run", model, tokenizer))


def logits_of(engine, text, split):
    """The logits after text[:split], text[:split + 1], …, text."""
    first = engine.start([text[:split]])
    return np.concatenate([first, *(engine.step([index]) for index in text[split:])])


@pytest.mark.parametrize("shape", AWKWARD_CONFIGS)
def test_llama_cpp_gives_the_logits_of_the_reference(shape, tokenizer, tmp_path):
    config = dataclasses.replace(AWKWARD_CONFIGS[shape], vocab_size=330)
    weights = reference.random_weights(config)
    model = CausalLM(config)
    assign_weights(model, weights)
    run = checkpoint.load(checkpoint.save(tmp_path / "run", model, tokenizer))
    build(run, tmp_path / "model.gguf", quantize=None)
    text = np.random.default_rng(0).integers(0, 330, 40).tolist()
    expected = reference.forward(config, weights, text)[10:]
    engine = LlamaCppEngine(tmp_path / "model.gguf")
    assert (engine.vocab_size, engine.context_length) == (330, 80)
    np.testing.assert_allclose(logits_of(engine, text, 11), expected, rtol=0, atol=1e-4 * max(1, np.abs(expected).max()))
    greedy = reference.greedy(config, weights, text[:7], steps=64)
    assert generate(engine, [text[:7]], max_new_tokens=64) == [greedy]


def test_an_exported_file_is_verified_and_so_is_its_tokenizer(run, tokenizer):
    path = export(run.path, format="gguf")
    assert path == run.path / "export" / "model.gguf"
    assert verify(run.path).passed
    engine = LlamaCppEngine(path)
    for text in STRINGS:
        assert engine.tokenize(text) == tokenizer.encode(text)


@pytest.mark.parametrize(("way", "kind", "bits"), [("f16", "F16", 16), ("q8_0", "Q8_0", 8.5), ("q4_0", "Q4_0", 4.5)])
def test_quantized_tensors_are_near_the_weights(run, way, kind, bits, tmp_path):
    path = tmp_path / f"model_{way}.gguf"
    build(run, path, quantize=way)
    weights = reference_weights(run.model)
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        expected = weights[tensor.name]
        matrix = expected.ndim > 1
        assert tensor.tensor_type.name == (kind if matrix else "F32")
        assert tensor.n_bytes == expected.size * (bits if matrix else 32) / 8
        step = np.abs(expected).max() * {"f16": 2**-11, "q8_0": 1 / 127, "q4_0": 1 / 8}[way]
        np.testing.assert_allclose(values.reshape(expected.shape), expected, rtol=0, atol=step if matrix else 0)
    prompt = [5, 9, 200]
    exact = KerasEngine(run.model).start([prompt])
    tolerance = {"f16": 0.01, "q8_0": 0.1, "q4_0": 1.0}[way] * np.abs(exact).max()
    np.testing.assert_allclose(LlamaCppEngine(path).start([prompt]), exact, rtol=0, atol=tolerance)


def reference_weights(model):
    """The weights under GGUF's names, the query and key rows put into pairs one by one."""
    config, found = (
        model.config,
        {"token_embd.weight": model.token_embedding.embeddings, "output_norm.weight": model.final_norm.scale},
    )
    for i, block in enumerate(model.blocks):
        attention, mlp = block.attention, block.mlp
        layers = {"attn_q": attention.query, "attn_k": attention.key, "attn_v": attention.value}
        layers |= {"attn_output": attention.output_projection, "ffn_gate": mlp.gate, "ffn_up": mlp.up, "ffn_down": mlp.down}
        found |= {f"blk.{i}.{name}.weight": layer.kernel for name, layer in layers.items()}
        found |= {f"blk.{i}.attn_norm.weight": block.attention_norm.scale, f"blk.{i}.ffn_norm.weight": block.mlp_norm.scale}
    arrays = {name: reference.to_numpy(value) for name, value in found.items()}
    arrays = {name: array if array.ndim == 1 or name == "token_embd.weight" else array.T for name, array in arrays.items()}
    half = config.head_dim // 2
    pairs = [row for pair in range(half) for row in (pair, pair + half)]
    for name, array in arrays.items():
        if "attn_q." in name or "attn_k." in name:
            heads = range(0, len(array), config.head_dim)
            arrays[name] = array[[head + row for head in heads for row in pairs]]
    return arrays


def test_the_worked_example_of_interleave():
    assert interleave(np.arange(4.0)[:, None], 1).ravel().tolist() == [0, 2, 1, 3]


def test_template_and_special_ids_are_in_the_file(run, tokenizer, tmp_path):
    build(run, tmp_path / "model.gguf", quantize=None)
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    found = {
        name.removeprefix("tokenizer."): field.contents() for name, field in fields.items() if name.startswith("tokenizer.")
    }
    assert found["chat_template"] == run.template.jinja()
    names = {"bos": "<start>", "eos": "<end>", "padding": "<pad>"}
    assert {name: found[f"ggml.{name}_token_id"] for name in names} == {n: tokenizer.markers[m] for n, m in names.items()}
    assert not found["ggml.add_bos_token"] and not found["ggml.add_eos_token"]


def test_a_wrong_file_is_not_kept(run, tmp_path, monkeypatch):
    """Planted: the rows of queries and keys stay half-split."""
    monkeypatch.setattr("smolite.exporters.gguf.build.interleave", lambda weight, num_heads: weight)
    with pytest.raises(RuntimeError, match=r"model\.gguf: a logit differs by"):
        export(run.path, format="gguf", out=tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_what_gguf_does_not_take_is_refused(run):
    with pytest.raises(ValueError, match="`quantize` for gguf must be one of: None, f16, q8_0, q4_0. Received: 'int8'"):
        export(run.path, format="gguf", quantize="int8")
    with pytest.raises(ValueError, match="gguf has no fixed lengths. Received: `prefill_lengths` or `cache_length`"):
        export(run.path, format="gguf", cache_length=32)


def test_scaled_positions_reach_llama_cpp(tokenizer, tmp_path):
    """Past the original context, where unscaled positions would give other logits."""
    scaling = RopeScaling(factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_context_length=16)
    model = CausalLM(dataclasses.replace(BLOCKY, rope_theta=5000.0, rope_scaling=scaling))
    random_weights(model, 3)
    plain = CausalLM(dataclasses.replace(BLOCKY, rope_theta=5000.0))
    random_weights(plain, 3)
    build(checkpoint.Run.from_parts(tmp_path, model=model, tokenizer=tokenizer), tmp_path / "model.gguf", quantize=None)
    text = np.random.default_rng(0).integers(0, 330, 60).tolist()
    expected, other = (reference.to_numpy(each(np.array([text])))[0, 40:] for each in (model, plain))
    assert np.abs(expected - other).max() > 0.05
    np.testing.assert_allclose(logits_of(LlamaCppEngine(tmp_path / "model.gguf"), text, 41), expected, rtol=0, atol=1e-4)


def test_another_form_is_refused(tokenizer, tmp_path):
    model = CausalLM(dataclasses.replace(BLOCKY, positions="learned"))
    run = checkpoint.Run.from_parts(tmp_path, model=model, tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"llama.cpp runs Llamas only. Received: a model with positions='learned'"):
        build(run, tmp_path / "model.gguf", quantize=None)


def test_the_engine_refuses_clearly(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"A \.gguf file was expected. Received: .*no\.gguf"):
        LlamaCppEngine(tmp_path / "no.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF, but not really")
    with pytest.raises(ValueError, match=r"A whole \.gguf file was expected"):
        LlamaCppEngine(tmp_path / "broken.gguf")
    build(run, tmp_path / "model.gguf", quantize=None)
    engine = LlamaCppEngine(tmp_path / "model.gguf", context_length=4)
    with pytest.raises(ValueError, match="takes one prompt at a time. Received: 2"):
        engine.start([[5], [6]])
    with pytest.raises(ValueError, match="from 0 to 329"):
        engine.start([[330]])
    engine.start([[5, 6, 7, 8]])
    with pytest.raises(ValueError, match="a step after 4 tokens in 4 slots"):
        engine.step([9])


def test_a_byte_level_tokenizer_splits_the_same_in_llama_cpp(tmp_path):
    """Ids of the model beyond the tokenizer's are unused ones, and markers that a user types stay text."""
    byte_level = JsonTokenizer(trained(), roles=ROLES, vocab_size=416)
    model = CausalLM(dataclasses.replace(BLOCKY, vocab_size=416))
    random_weights(model, 5)
    build(checkpoint.Run.from_parts(tmp_path, model=model, tokenizer=byte_level), tmp_path / "model.gguf", quantize=None)
    engine = LlamaCppEngine(tmp_path / "model.gguf")
    for text in [*CORPUS, "it's 12,345", "가나 다라\n\n the  end", "<|im_start|>user"]:
        assert engine.tokenize(text) == byte_level.encode(text)
    exact = KerasEngine(model).start([[5, 9, 300]])
    np.testing.assert_allclose(engine.start([[5, 9, 300]]), exact, rtol=0, atol=1e-4)


def test_another_rule_for_words_is_refused(tmp_path):
    content = json.loads(trained())
    content["pre_tokenizer"]["pretokenizers"][0]["individual_digits"] = False
    other = JsonTokenizer(json.dumps(content).encode(), roles=ROLES)
    model = CausalLM(dataclasses.replace(BLOCKY, vocab_size=other.vocab_size))
    run = checkpoint.Run.from_parts(tmp_path, model=model, tokenizer=other)
    with pytest.raises(
        ValueError, match=r'must be cut by ByteLevel, or by Digits and ByteLevel.* Received: \{"type": "Sequence"'
    ):
        build(run, tmp_path / "model.gguf", quantize=None)


@pytest.mark.skipif(not FOLDER.exists(), reason=REASON)
def test_stories_says_its_golden_text_in_llama_cpp(tmp_path):
    model = CausalLM(stories_config())
    assign_weights(model, stories_weights())
    tokenizer = Tokenizer(stories_tokenizer_proto())
    build(checkpoint.Run.from_parts(tmp_path, model=model, tokenizer=tokenizer), tmp_path / "stories.gguf", quantize=None)
    start, *golden = stories_golden()[0]["ids_200"]
    assert generate(LlamaCppEngine(tmp_path / "stories.gguf"), [[start]], max_new_tokens=len(golden))[0] == golden


def test_a_chat_is_the_same_text_for_llama_cpp(run, tokenizer):
    """A prompt written by the template's text and split by llama.cpp, markers parsed, has the ids of `prompt`."""
    path = run.path / "export" / "model.gguf"
    engine = LlamaCppEngine(path if path.exists() else export(run.path, format="gguf"))
    turns = [Message("user", "안녕하세요"), Message("assistant", "반가워요"), Message("user", "오늘 점심 뭐 먹을까?")]
    text = "<start>안녕하세요<sep>반가워요<end><start>오늘 점심 뭐 먹을까?<sep>"
    assert list(engine._vocab.tokenize(text, False, True)) == run.template.prompt(turns, tokenizer)
