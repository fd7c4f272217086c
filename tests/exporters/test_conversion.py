"""Referees: keras-hub opens its preset and transformers our folder, with the same logits; the first Smolite's own forward."""

import dataclasses

import keras_hub
import numpy as np
import pytest
import torch
import transformers
from exported import random_weights
from first_smolite import first_smolite
from reference import run, to_numpy
from tiny import TINY, tokenizer

import smolite
from smolite.cli.parser import main
from smolite.models.causal_lm import CausalLM

ROWS = np.random.RandomState(3).randint(5, 1024, (2, 13)).astype("int32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("convert") / "run"
    model = CausalLM(dataclasses.replace(TINY, rope_theta=5e4, norm_epsilon=1e-3))
    random_weights(model, 5)
    return smolite.save(path, model, tokenizer())


# keras-hub opens the tokenizer's file and leaves closing to the garbage collector.
@pytest.mark.filterwarnings("ignore:.*vocabulary.spm", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_run_becomes_a_preset_of_keras_hub_and_a_run_again(folder, tmp_path, capsys):
    expected = run(smolite.load(folder).model, ROWS)
    assert main(["convert", str(folder), str(tmp_path / "preset"), "--to", "keras-hub"]) == 0
    assert capsys.readouterr().out.strip().endswith("preset")
    theirs = keras_hub.models.CausalLM.from_preset(str(tmp_path / "preset"))
    np.testing.assert_allclose(
        run(theirs, {"token_ids": ROWS, "padding_mask": np.ones_like(ROWS)}), expected, rtol=0, atol=1e-4
    )

    back = smolite.load(smolite.convert(tmp_path / "preset", tmp_path / "back"))
    original = smolite.load(folder)
    assert back.model.config == original.model.config and back.template == original.template
    assert back.tokenizer.markers == original.tokenizer.markers
    assert back.tokenizer.encode("안녕하세요 <end>") == original.tokenizer.encode("안녕하세요 <end>")
    np.testing.assert_array_equal(run(back.model, ROWS), expected)
    llama = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    np.testing.assert_allclose(llama(torch.tensor(ROWS.astype("int64"))).logits.detach(), expected, rtol=0, atol=1e-4)


def test_the_first_smolite_becomes_a_run_that_chats(tmp_path, capsys):
    referee = first_smolite(1024, width=64, inside=40, layers=2, heads=8)
    referee.save_weights(tmp_path / "model1.weights.h5")
    (tmp_path / "unigram.model").write_bytes(tokenizer().model_proto)
    words = ["convert", str(tmp_path / "model1.weights.h5"), str(tmp_path / "run")]
    assert main(words) == 1
    assert "has no tokenizer" in capsys.readouterr().err
    assert main([*words, "--tokenizer", str(tmp_path / "unigram.model"), "--context-length", "40"]) == 0
    loaded = smolite.load(tmp_path / "run")
    assert (loaded.model.config.form, loaded.model.config.context_length) == ("smolite-1", 40)
    np.testing.assert_allclose(to_numpy(loaded.model(ROWS)), to_numpy(referee(ROWS)), atol=1e-4)
    assert main(["chat", str(tmp_path / "run"), "--prompt", "안녕", "--max-new-tokens", "4"]) == 0


def test_what_cannot_be_converted_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="A model is converted to run or keras-hub. Received: 'onnx'"):
        smolite.convert(folder, tmp_path / "out", to="onnx")
    with pytest.raises(FileExistsError, match=r"run must not exist yet. Choose another folder"):
        smolite.convert(folder, folder)
    with pytest.raises(FileNotFoundError, match="must be a file. Received: .*none.weights.h5"):
        smolite.convert(tmp_path / "none.weights.h5", tmp_path / "out", tokenizer=folder / "tokenizer.model")
    with pytest.raises(FileNotFoundError, match="A run directory must exist. Received: .*nowhere"):
        smolite.convert(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()
