"""Weights in 8 and 4 bits. Referees: sizes counted by hand, the numbers of the file read with safetensors, the float model."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from reference import AWKWARD_CONFIGS, random_weights, run
from safetensors.numpy import load_file, save_file
from tiny import TINY, conversations, tokenizer

from smolite.checkpoint import quantized_weights as quantized
from smolite.checkpoint import run as checkpoint
from smolite.checkpoint.quantized_weights import QuantizedTensors, quantize_tensors
from smolite.checkpoint.weights import model_weights
from smolite.data.dataset import ChatDataset
from smolite.data.packing import pack
from smolite.data.template import ChatTemplate, fit_context
from smolite.evaluation.likelihood import evaluate
from smolite.generation.keras_engine import KerasEngine
from smolite.generation.replies import reply
from smolite.models.causal_lm import CausalLM
from smolite.models.config import ModelConfig
from smolite.training.compilation import compile_for_training
from smolite.training.options import TrainingOptions

WIDE = dataclasses.replace(TINY, hidden_dim=96, intermediate_dim=256, dropout=0.0)
KNOWN = {"tokenizer": tokenizer(), "template": ChatTemplate()}


@pytest.fixture(scope="module")
def model():
    """A model that has learnt some dialogues, so that its logits say something."""
    keras.utils.set_random_seed(1)
    model = CausalLM(WIDE)
    rows = pack(fit_context(conversations()[:16], tokenizer(), context_length=64, template=ChatTemplate()).examples, 64)
    compile_for_training(model, TrainingOptions(learning_rate=5e-3), total_steps=100)
    model.fit(ChatDataset(rows, 8, steps_per_epoch=100), shuffle=False, verbose=0)
    return model


@pytest.fixture(scope="module")
def folders(model, tmp_path_factory):
    """The same run as floats (32), and in 8 and 4 bits."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        bits: checkpoint.save(folder / str(bits), model, tokenizer(), bits=None if bits == 32 else bits) for bits in (32, 8, 4)
    }


def size(folder):
    (file,) = folder.glob("*.safetensors")
    return file.stat().st_size


def bytes_by_hand(config, bits):
    """A byte a weight and two bytes a row; at 4 bits half a byte a weight and two bytes for 32, but not in the table."""
    total = 0.0
    for name, shape in shapes_of(config).items():
        count = np.prod(shape)
        if len(shape) == 1:
            total += 4 * count
        else:
            total += count / 2 + count / 16 if bits == 4 and name != "embed" else count + 2 * shape[0]
    return total


def test_the_files_are_as_small_as_said(folders):
    for bits in (8, 4):
        body = bytes_by_hand(WIDE, bits)
        assert body < size(folders[bits]) < body + 4000, "names and shapes stand before the numbers"
    assert size(folders[4]) < 0.25 * size(folders[32])
    assert 0.25 * size(folders[32]) < size(folders[8]) < 0.27 * size(folders[32])


def test_smollm2_in_8_bits_is_a_quarter_and_a_thousandth():
    """What the documentation says of `smollm2-135m`: 25.1 % of float32, and 16.4 % at 4 bits."""
    config = ModelConfig.from_preset("smollm2-135m")
    shares = [bytes_by_hand(config, bits) / (4 * config.num_parameters) for bits in (8, 4)]
    assert shares == pytest.approx([0.251, 0.164], abs=5e-4)


def shapes_of(config):
    """Shapes under Hugging Face's names, (outputs, inputs)."""
    width, inside = config.hidden_dim, config.intermediate_dim
    queries, keys = config.num_query_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    block = {"q": (queries, width), "k": (keys, width), "v": (keys, width), "o": (width, queries)}
    block |= {"gate": (inside, width), "up": (inside, width), "down": (width, inside), "n1": (width,), "n2": (width,)}
    blocks = {f"{number}.{name}": shape for number in range(config.num_layers) for name, shape in block.items()}
    return {"embed": (config.vocab_size, width), "norm": (width,), **blocks}


def test_the_numbers_in_the_file_are_the_weights_rounded(model, folders):
    """Each weight is at most half a step away: of its row's scale at 8 bits, of its 32 weights' at 4."""
    weights = model_weights(model)
    stored = {bits: load_file(folders[bits] / f"model_int{bits}.safetensors") for bits in (8, 4)}
    for name, weight in weights.items():
        if weight.ndim == 1:
            np.testing.assert_array_equal(stored[8][name], weight)
            continue
        scales = stored[8][f"{name}.scale"].astype("float32")[:, None]
        assert stored[8][name].dtype == np.int8 and np.abs(stored[8][name]).max() == 127
        assert (np.abs(stored[8][name] * scales - weight) <= 0.51 * scales).all()
        if "embed" in name:
            np.testing.assert_array_equal(stored[4][name], stored[8][name])
            continue
        packed, scales = stored[4][name], stored[4][f"{name}.scale"].astype("float32")
        numbers = np.empty(weight.shape)
        numbers[:, 0::2], numbers[:, 1::2] = packed % 16 - 8.0, packed // 16 - 8.0
        steps = np.repeat(scales, 32, axis=1)
        assert scales.shape == (weight.shape[0], weight.shape[1] // 32)
        assert (np.abs(numbers * steps - weight) <= 1.01 * np.abs(steps)).all()
        assert np.mean(np.abs(numbers * steps - weight) <= 0.51 * np.abs(steps)) > 0.95, "only opposite extremes are cut"


@pytest.mark.parametrize(("bits", "share"), [(8, 0.02), (4, 0.22)])
def test_the_logits_are_close(model, folders, bits, share):
    """At a mean position the largest difference is a share of the largest logit."""
    ids = np.random.default_rng(1).integers(5, 1024, (2, 30))
    expected = run(model, ids)
    differences = np.abs(run(checkpoint.load(folders[bits]).model, ids) - expected)
    assert np.mean(differences.max(axis=-1) / np.abs(expected).max(axis=-1)) < share


@pytest.mark.parametrize(("bits", "most"), [(8, 1.01), (4, 1.1)])
def test_little_is_lost_in_bits_per_character(model, folders, bits, most):
    held_out = conversations()[:20]
    whole = evaluate(model, held_out, **KNOWN).bits_per_character
    fewer = evaluate(checkpoint.load(folders[bits]).model, held_out, **KNOWN).bits_per_character
    assert whole < 6 and fewer < most * whole and fewer != whole


def test_it_chats_and_says_the_same_in_8_bits(model, folders):
    questions = [dialogue.messages[:1] for dialogue in conversations()[:2]]
    answers = {32: [reply(KerasEngine(model), question, max_new_tokens=12, **KNOWN) for question in questions]}
    for bits in (8, 4):
        loaded = checkpoint.load(folders[bits])
        engine, known = KerasEngine(loaded.model), {"tokenizer": loaded.tokenizer, "template": loaded.template}
        answers[bits] = [reply(engine, question, max_new_tokens=12, **known) for question in questions]
    assert answers[8] == answers[32] and all(map(str.strip, answers[4] + answers[8])), answers


def test_the_folder_says_so_and_transformers_refuses_it(folders):
    transformers = pytest.importorskip("transformers")
    for bits in (8, 4):
        config = json.loads((folders[bits] / "config.json").read_text("utf-8"))
        assert config["quantization_config"] == {"quant_method": "smolite", "bits": bits}
        assert [path.name for path in folders[bits].glob("*.safetensors")] == [f"model_int{bits}.safetensors"]
        with pytest.raises((OSError, ValueError), match="model.safetensors|smolite"):
            transformers.AutoModelForCausalLM.from_pretrained(folders[bits])


def test_quantizing_what_was_quantized_changes_nothing(folders, tmp_path):
    """The numbers of 8 bits come back as they are, so a run can be opened, saved and opened again."""
    once = checkpoint.load(folders[8])
    checkpoint.save(tmp_path / "twice", once.model, once.tokenizer, bits=8)
    for name, weight in model_weights(checkpoint.load(tmp_path / "twice").model).items():
        np.testing.assert_allclose(weight, model_weights(once.model)[name], rtol=1e-3, atol=1e-6)


def test_a_run_overwritten_with_fewer_bits_has_no_other_weights(model, tmp_path):
    for bits, name in ((None, "model.safetensors"), (4, "model_int4.safetensors"), (None, "model.safetensors")):
        checkpoint.save(tmp_path / "run", model, tokenizer(), bits=bits, overwrite=True)
        assert [path.name for path in (tmp_path / "run").glob("*.safetensors")] == [name]
        assert checkpoint.load(tmp_path / "run").model.config == WIDE


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", AWKWARD_CONFIGS)
def test_awkward_widths_and_empty_rows(tmp_path, name, bits):
    """Rows that 32 does not divide, odd rows, and a row of zeros."""
    weights = {key: weight.copy() for key, weight in random_weights(AWKWARD_CONFIGS[name]).items()}
    weights["model.embed_tokens.weight"][3] = 0.0
    save_file(quantize_tensors(weights, bits), tmp_path / "q.safetensors")
    read = QuantizedTensors(tmp_path / "q.safetensors")
    assert {key: header[0] for key, header in read.headers.items()} == {key: each.shape for key, each in weights.items()}
    assert len(read) == len(weights) and set(read) == set(weights)
    for key, weight in weights.items():
        assert read[key].dtype == np.float32
        assert np.abs(read[key] - weight).max() <= (0.005 if bits == 8 else 0.13) * np.abs(weight).max(), key
    assert not read["model.embed_tokens.weight"][3].any()


def test_other_bits_are_refused():
    with pytest.raises(ValueError, match="`bits` must be 8 or 4. Received: 3. Choose one of them."):
        quantize_tensors({}, 3)


def test_scales_that_are_missing_are_named(tmp_path):
    save_file({"a.weight": np.zeros((2, 2), "int8")}, tmp_path / "q.safetensors")
    with pytest.raises(ValueError, match="must hold the scales of its tensors. Missing: a.weight.scale. Quantize again."):
        QuantizedTensors(tmp_path / "q.safetensors")


def test_weights_quantized_by_others_are_still_refused(folders, tmp_path):
    config = json.loads((folders[32] / "config.json").read_text("utf-8"))
    assert quantized.bits_of(config) == 0
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(ValueError, match="quantization_config=.*gptq.*not known"):
        checkpoint.load_model(tmp_path)
