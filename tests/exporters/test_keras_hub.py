"""Our weights in keras-hub's Llama and back. Referee: keras-hub's own forward, tokenizer and greedy `generate`."""

from dataclasses import replace

import keras_hub
import numpy as np
import pytest
from exported import TEXTS, random_weights
from reference import AWKWARD_CONFIGS, run
from test_gguf import BLOCKY

from smolite.checkpoint import run as checkpoint
from smolite.exporters.neighbours.keras_hub import empty_backbone, from_keras_hub, preprocessor_of, to_keras_hub
from smolite.generation.keras_engine import KerasEngine
from smolite.generation.loop import generate
from smolite.models.causal_lm import CausalLM
from smolite.models.config import RopeScaling
from smolite.text.tokenizer import train_tokenizer

ROWS = np.random.RandomState(3).randint(5, 330, (2, 13)).astype("int32")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    tokenizer = train_tokenizer(TEXTS, folder / "tokenizer.model", vocab_size=330)
    model = CausalLM(replace(BLOCKY, head_dim=16, norm_epsilon=1e-3))
    random_weights(model, 4)
    return checkpoint.load(checkpoint.save(folder / "run", model, tokenizer))


def hub_logits(model, rows):
    return run(model, {"token_ids": rows, "padding_mask": np.ones_like(rows)})


def test_logits_are_the_same_there_and_back_again(saved):
    theirs = to_keras_hub(saved)
    expected = run(saved.model, ROWS)
    np.testing.assert_allclose(hub_logits(theirs, ROWS), expected, rtol=0, atol=1e-4)
    back = from_keras_hub(theirs, context_length=64)
    assert back.config == saved.model.config
    for ours, again in zip(saved.model.get_weights(), back.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, again)


def test_its_preprocessor_gives_our_ids_and_its_generate_our_text(saved):
    theirs = to_keras_hub(saved)
    for text in TEXTS:
        ids = np.asarray(theirs.preprocessor.tokenizer(text)).tolist()
        assert ids == saved.tokenizer.encode(text)
    theirs.compile(sampler="greedy")
    prompt = [saved.tokenizer.start_id, *saved.tokenizer.encode(TEXTS[0])]
    ours = generate(KerasEngine(saved.model), [prompt], max_new_tokens=8)[0]
    tokens = np.array([prompt + [0] * 8])
    mask = np.array([[1] * len(prompt) + [0] * 8])
    theirs.preprocessor = None
    written = theirs.generate({"token_ids": tokens, "padding_mask": mask}, stop_token_ids=None)["token_ids"]
    assert np.asarray(written)[0, len(prompt) :].tolist() == ours


def test_a_model_alone_has_no_preprocessor(saved):
    assert to_keras_hub(saved.model).preprocessor is None


def test_heads_of_another_width_are_refused():
    with pytest.raises(ValueError, match="must be `hidden_dim // num_query_heads` for keras-hub. Received: 12, 42 and 6"):
        to_keras_hub(CausalLM(AWKWARD_CONFIGS["grouped"]))


def test_scaled_positions_go_there_and_back_again():
    scaling = RopeScaling(factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_context_length=16)
    model = CausalLM(replace(BLOCKY, head_dim=16, rope_theta=5000.0, rope_scaling=scaling))
    random_weights(model, 4)
    rows = np.random.RandomState(5).randint(5, 330, (1, 60)).astype("int32")
    theirs = to_keras_hub(model)
    np.testing.assert_allclose(hub_logits(theirs, rows), run(model, rows), rtol=0, atol=1e-4)
    assert from_keras_hub(theirs, context_length=64).config == model.config


def test_another_form_is_refused():
    with pytest.raises(ValueError, match="keras-hub's Llama runs Llamas only. Received: a model with form='smolite-1'"):
        empty_backbone(replace(BLOCKY, head_dim=16, form="smolite-1"))


@pytest.mark.parametrize("change", [{"tie_word_embeddings": False}, {"rope_position_scaling_factor": 2.0}])
def test_what_we_do_not_have_is_refused_by_name(change):
    shape = {"vocabulary_size": 50, "num_layers": 1, "num_query_heads": 2, "num_key_value_heads": 1}
    shape |= {"hidden_dim": 8, "intermediate_dim": 8, "tie_word_embeddings": True, **change}
    ((name, value),) = change.items()
    with pytest.raises(ValueError, match=f"positions plain or as Llama 3.1's, was expected. Received: {name}={value}. Choose"):
        from_keras_hub(keras_hub.models.LlamaBackbone(**shape))


def test_its_preprocessor_puts_the_markers_around_a_text_and_trains_on_it(saved):
    text = "안녕하세요, 오늘 점심 ㅋㅋ\n네!"
    fields, targets, weights = preprocessor_of(saved.tokenizer, length=64)([text])
    ids = [saved.tokenizer.start_id, *saved.tokenizer.encode(text), saved.tokenizer.end_id]
    assert [int(index) for index in fields["token_ids"][0][: len(ids)]] == ids
    assert [int(index) for index in targets[0][: len(ids) - 1]] == ids[1:]
    assert sum(map(bool, weights[0])) == len(ids) - 1
