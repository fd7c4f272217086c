"""`from_preset`, `save_to_preset` and `generate`. Referees: the engine's own greedy ids, and a run directory read again."""

import dataclasses

import keras
import keras_hub
import numpy as np
import pytest
from tiny import TINY, tokenizer

from smolite.checkpoint.run import load, save
from smolite.generation.keras_engine import KerasEngine
from smolite.generation.loop import generate
from smolite.generation.sampling import Sampling
from smolite.models.causal_lm import CausalLM
from smolite.models.config import PRESETS
from smolite.models.seq2seq_lm import Seq2SeqLM

PAIRS = dataclasses.replace(TINY, num_encoder_layers=1)
TEXT = "오늘 점심은 국수"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run directory of each kind."""
    keras.utils.set_random_seed(1)
    folder = tmp_path_factory.mktemp("presets")
    models = {"chat": CausalLM(TINY), "pairs": Seq2SeqLM(PAIRS)}
    return {name: save(folder / name, model, tokenizer()) for name, model in models.items()}


@pytest.fixture(scope="module")
def model(saved):
    return CausalLM.from_preset(saved["chat"])


@pytest.mark.parametrize("kind, name", [(CausalLM, "chat"), (Seq2SeqLM, "pairs")])
def test_a_run_is_opened_and_written_again(saved, kind, name, tmp_path):
    model = kind.from_preset(saved[name], dtype="float32")
    assert type(model) is kind and model.tokenizer.model_proto == tokenizer().model_proto
    model.save_to_preset(tmp_path / "again")
    for ours, again in zip(model.get_weights(), load(tmp_path / "again").model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, again)
    with pytest.raises(FileExistsError, match="again"):
        model.save_to_preset(tmp_path / "again")
    model.save_to_preset(tmp_path / "again", overwrite=True)


def test_random_weights_of_a_run_and_of_a_shape(saved, model, monkeypatch):
    drawn = CausalLM.from_preset(saved["chat"], load_weights=False)
    assert drawn.config == model.config and np.abs(drawn.get_weights()[0] - model.get_weights()[0]).max() > 0
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    assert CausalLM.from_preset("tiny", load_weights=False, dtype="mixed_bfloat16").config == TINY
    with pytest.raises(ValueError, match="a shape without weights. Received: 'tiny'. Pass load_weights=False"):
        CausalLM.from_preset("tiny")


def test_a_run_of_the_other_kind_is_refused(saved):
    with pytest.raises(ValueError, match="opens models of its own kind. .* a Seq2SeqLM. Call `Seq2SeqLM.from_preset`."):
        CausalLM.from_preset(saved["pairs"])


def expected(model, ids, length):
    stop = (model.tokenizer.end_id,)
    return generate(KerasEngine(model), [ids], max_new_tokens=length - len(ids), stop_ids=stop)[0]


def test_text_goes_in_and_comes_out(model):
    ids = model.tokenizer.encode(TEXT)
    new = expected(model, ids, 24)
    whole, answer = model.tokenizer.decode(ids + new), model.tokenizer.decode(new)
    assert model.generate(TEXT, max_length=24) == whole and whole.startswith(TEXT)
    assert model.generate([TEXT, TEXT], 24, strip_prompt=True) == [answer, answer]


@pytest.mark.parametrize("as_given", [list, np.array], ids=["list", "array"])
def test_ids_go_in_and_come_out(model, as_given):
    new = expected(model, [5, 6, 7], 12)
    assert model.generate(as_given([5, 6, 7]), 12) == [5, 6, 7, *new]
    assert model.generate([as_given([5, 6, 7]), as_given([5, 6])], 12)[0] == [5, 6, 7, *new]
    assert len(model.generate([[5, 6, 7], [5, 6]], 12, stop_token_ids=None)[1]) == 12


def test_an_encoder_decoder_answers(saved):
    model = Seq2SeqLM.from_preset(saved["pairs"])
    answers = model.generate([TEXT, "네"], max_length=6, stop_token_ids=None)
    assert len(answers) == 2 and all(isinstance(answer, str) and not answer.startswith(TEXT) for answer in answers)


def test_a_model_goes_on_as_keras_hub_does():
    """Greedy ids of the same weights, through the same call."""
    from smolite.checkpoint.run import Run
    from smolite.exporters.neighbours.keras_hub import to_keras_hub

    keras.utils.set_random_seed(3)
    model = CausalLM(dataclasses.replace(TINY, dropout=0.0))
    theirs = to_keras_hub(Run.from_parts("none", model=model, tokenizer=tokenizer()))
    theirs.preprocessor = None
    tokens = np.array([[5, 6, 7] + [0] * 6])
    for each in (model, theirs):
        each.compile(sampler="greedy")
    written = theirs.generate({"token_ids": tokens, "padding_mask": tokens > 0}, stop_token_ids=None)["token_ids"]
    assert model.generate([5, 6, 7], max_length=9, stop_token_ids=None) == np.asarray(written)[0].tolist()
    assert isinstance(theirs, keras_hub.models.CausalLM)


def test_a_sampler_by_name_or_object_is_kept_in_a_saved_model(tmp_path):
    model = CausalLM(TINY)
    model.compile(sampler="top_k")
    assert model.sampler == Sampling(top_k=5)
    model.compile("sgd", sampler=Sampling(temperature=0.7, seed=3))
    first = model.generate([5, 6], 12, stop_token_ids=None)
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    assert copy.sampler == model.sampler and copy.generate([5, 6], 12, stop_token_ids=None) == first
    with pytest.raises(ValueError, match="`sampler` must be a `smolite.Sampling` or one of greedy, .*Received: 'beam'"):
        model.compile(sampler="beam")


def test_changed_layers_get_a_new_engine():
    model = CausalLM(TINY)
    before = model.generate([5, 6], 8, stop_token_ids=None)
    model.enable_lora(2)
    for variable in model.trainable_variables:
        variable.assign(np.random.RandomState(0).normal(size=variable.shape))
    assert model.generate([5, 6], 8, stop_token_ids=None) != before


REFUSED = {
    "text": (lambda model: model.generate("네"), "`generate` needs the model's tokenizer.*Set `model.tokenizer`"),
    "auto": (lambda model: model.generate([5]), 'stop_token_ids="auto".* needs the model\'s tokenizer'),
    "none": (lambda model: model.generate([]), "`inputs` must hold a text, ids, or some of them. Received: none"),
    "room": (lambda model: model.generate([5, 6], 2, None), "leave room after the longest prompt, of 2 ids. Received: 2."),
    "save": (lambda model: model.save_to_preset("run"), "`save_to_preset` needs the model's tokenizer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_model_cannot_do_alone_is_refused(case):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call(CausalLM(TINY))
