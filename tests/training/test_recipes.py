"""From files to run directories. Referees: the run directory read again, and scores computed outside the recipe."""

import csv
import dataclasses
import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import keras
import numpy as np
import pytest
from tiny import TINY, conversations, tokenizer, write_dialogues

from smolite.checkpoint import run as checkpoint
from smolite.data.packing import pack
from smolite.data.template import Conversation, Message, fit_context
from smolite.evaluation.likelihood import evaluate_examples
from smolite.generation.keras_engine import KerasEngine
from smolite.models.causal_lm import CausalLM
from smolite.models.config import PRESETS
from smolite.text.tokenizer import vocabulary_for
from smolite.training.fit import finetune, pretrain, train_pairs
from smolite.training.options import TrainingOptions
from smolite.training.samples import sample_texts
from smolite.training.starts import new_model
from smolite.training.workplace import Workplace

OPTIONS = TrainingOptions(epochs=2, batch_size=4, sequence_length=48)
SYSTEM = Message("system", "짧게 답해요.")
LONG = Conversation((Message("user", "점심은 먹었어? " * 30), Message("assistant", "네")))
HELD_OUT = [LONG, *[Conversation((SYSTEM, *dialogue.messages)) for dialogue in conversations()[30:36]]]


@pytest.fixture(scope="module", autouse=True)
def tiny_preset():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", TINY)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of Smolwrite's form, held-out dialogues, and plain text."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "Smolwrite-dataset").mkdir()
    write_dialogues(folder / "Smolwrite-dataset" / "VeTrans.jsonl", [LONG, *conversations()[:16]])
    write_dialogues(folder / "held-out.jsonl", HELD_OUT)
    lines = [message.content for dialogue in conversations()[:60] for message in dialogue.messages]
    (folder / "text.txt").write_text("\n".join(["\u200b", *lines]), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def finetuned(folder):
    given = {"validation": folder / "held-out.jsonl", "tokenizer": tokenizer(), "preset": "tiny", "options": OPTIONS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *text, **_: printed.append(" ".join(map(str, text))))
        printed = []
        run = finetune(folder / "Smolwrite-dataset", folder / "finetuned", **given)
    return run, "\n".join(printed)


def test_the_run_directory_is_whole_and_nothing_else_is_left(finetuned, folder):
    run, _ = finetuned
    again = checkpoint.load(run.path)
    for left, right in zip(run.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)
    assert again.tokenizer.model_proto == tokenizer().model_proto
    names = {"config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json", "generation_config.json"}
    assert {path.name for path in run.path.iterdir()} == names | {"recipe.json", "log.csv", "curve.svg"}
    assert not [path for path in folder.iterdir() if "finetuned." in path.name]


def test_the_recipe_tells_how_the_run_was_made(finetuned, folder):
    recipe = json.loads((finetuned[0].path / "recipe.json").read_text("utf-8"))
    assert (recipe["verb"], recipe["preset"], recipe["options"]) == ("finetune", "tiny", OPTIONS.to_dict())
    assert recipe["dataset"] == str(folder / "Smolwrite-dataset") and recipe["validation"] == str(folder / "held-out.jsonl")
    assert [row["epoch"] for row in recipe["log"]] == [1, 2] and recipe["saved_epoch"] == 2


def test_log_and_curve(finetuned):
    run, _ = finetuned
    with (run.path / "log.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{name: float(value) for name, value in row.items()} for row in rows] == run.recipe["log"]
    assert rows[0].keys() >= set(
        "loss perplexity accuracy val_perplexity val_bits_per_character learning_rate trained_per_second".split()
    )
    assert float(rows[1]["loss"]) < float(rows[0]["loss"])
    texts = {text.text for text in ElementTree.parse(run.path / "curve.svg").getroot().iter() if text.text}
    assert f"validation {math.log(float(rows[1]['val_perplexity'])):.3f}" in texts


def test_the_logged_bits_per_character_are_those_of_evaluate(finetuned):
    run, _ = finetuned
    fitted = fit_context(HELD_OUT, tokenizer(), context_length=48)
    result = evaluate_examples(run.model, fitted.examples, fitted.num_characters)
    assert run.recipe["log"][1]["val_bits_per_character"] == pytest.approx(result.bits_per_character, rel=1e-4)
    assert run.recipe["log"][1]["val_accuracy"] == pytest.approx(result.accuracy, abs=1e-5)


def test_what_was_cut_is_counted_and_samples_are_printed(finetuned):
    """A question that exceeds the row is never asked; a system turn is no question."""
    _, printed = finetuned
    fitted = fit_context([LONG, *conversations()[:16]], tokenizer(), context_length=48)
    rows = pack(fitted.examples, 48)
    assert f" {fitted.counts['dropped']} dropped dialogues → {len(rows)} rows of 48" in printed
    assert f"{rows.num_trained:,} trained tokens" in printed
    shown = fit_context(HELD_OUT, tokenizer(), context_length=48).kept[:3]
    assert len(shown) > 1 and LONG not in shown
    assert [printed.count(f"  {dialogue.messages[1].content} → ") for dialogue in shown] == [OPTIONS.epochs] * len(shown)


@pytest.fixture(scope="module")
def pretrained(folder):
    options = TrainingOptions(epochs=1, batch_size=4, sequence_length=64)
    given = {"validation": folder / "text.txt", "preset": "tiny", "options": options}
    return pretrain([folder / "text.txt", folder / "held-out.jsonl"], folder / "pretrained", **given)


def test_pretraining_trains_a_tokenizer_and_learns_text(pretrained, folder):
    (row,) = pretrained.recipe["log"]
    assert row["perplexity"] < pretrained.tokenizer.vocab_size * 1.6  # logits vary by 1 at first
    lines = (folder / "text.txt").read_text("utf-8").split("\n")
    ids = [pretrained.tokenizer.encode(line) for line in lines]
    firsts = [pretrained.tokenizer.decode(each[:1]) for each in ids if each]  # which nothing predicts
    tokens, characters = sum(map(len, ids)), sum(len(line) + 1 for line in lines[1:]) - sum(map(len, firsts))
    bits = math.log2(row["val_perplexity"]) * tokens / characters
    assert row["val_bits_per_character"] == pytest.approx(bits, rel=1e-3)
    turns = [message.content for dialogue in HELD_OUT for message in dialogue.messages]
    assert pretrained.tokenizer.vocab_size == vocabulary_for(lines + turns, most=1024) <= 1024
    assert pretrained.recipe["dataset"] == [str(folder / "text.txt"), str(folder / "held-out.jsonl")]


def test_pretraining_goes_on_from_a_run(pretrained, folder):
    """At a rate of almost nothing the weights are the parent's, in its shape and with its tokenizer."""
    options = TrainingOptions(epochs=1, batch_size=8, sequence_length=64, learning_rate=1e-9, weight_decay=0.0)
    run = pretrain(folder / "held-out.jsonl", folder / "continued", start=pretrained.path, options=options)
    pairs = zip(run.model.get_weights(), pretrained.model.get_weights(), strict=True)
    assert all(np.abs(new - old).max() < 1e-6 for new, old in pairs)
    assert run.tokenizer.model_proto == pretrained.tokenizer.model_proto
    assert run.recipe["start"] == str(pretrained.path) and "preset" not in run.recipe
    with pytest.raises(ValueError, match="A run to start from brings its tokenizer."):
        pretrain(folder / "text.txt", folder / "both", start=pretrained.path, tokenizer=tokenizer())


def test_samples_of_text_leave_out_what_has_no_token(pretrained):
    engine = KerasEngine(pretrained.model)
    shown = sample_texts(engine, pretrained, ["", "오늘 점심은 국수를 먹었다"])
    assert shown.count(" → ") == 1 and shown.startswith("  오늘")
    assert sample_texts(engine, pretrained, [""]) == ""


def test_finetuning_starts_from_a_run(pretrained, folder):
    """At a rate of next to nothing the weights stay those of the start, and tokenizer and shape come from it."""
    options = TrainingOptions(epochs=1, batch_size=8, sequence_length=48, learning_rate=1e-9, dropout=0.3, seed=5)
    run = finetune(folder / "held-out.jsonl", folder / "started", start=pretrained.path, options=options)
    for left, right in zip(run.model.get_weights(), pretrained.model.get_weights(), strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-7)
    assert run.tokenizer.model_proto == pretrained.tokenizer.model_proto
    assert run.model.config.dropout == 0.3 and run.recipe["start"] == str(pretrained.path)
    assert "preset" not in run.recipe and run.recipe["saved_epoch"] == 1


@pytest.mark.slow
def test_a_run_that_diverges_says_so(folder):
    options = TrainingOptions(
        epochs=1, batch_size=1, sequence_length=48, learning_rate=1e30, global_clipnorm=0.0, warmup_ratio=0.0
    )
    with pytest.raises(FloatingPointError, match="The loss must be a number. Received: `loss` nan in epoch 1. Train again"):
        finetune(folder / "Smolwrite-dataset", folder / "diverged", tokenizer=tokenizer(), preset="tiny", options=options)


def test_the_seed_draws_the_weights():
    options = [TrainingOptions(sequence_length=8, seed=seed) for seed in (1, 1, 2)]
    one, same, other = (new_model("tiny", vocab_size=300, options=each) for each in options)
    assert all((left == right).all() for left, right in zip(one.get_weights(), same.get_weights(), strict=True))
    assert (one.get_weights()[0] != other.get_weights()[0]).any()


REFUSED = {
    "sequence_length": (
        {"options": TrainingOptions(sequence_length=65)},
        "`sequence_length` must not exceed .* Received: 65 and 64. Choose",
    ),
    "preset": ({"preset": "small"}, "Unknown preset. Received: 'small'. Choose one of: smolite-small"),
    "patience": (
        {"options": TrainingOptions(sequence_length=48, patience=3), "validation": None},
        "`patience` needs validation data to compare epochs. Received: 3 and no `validation`. Give held-out data",
    ),
}


@pytest.mark.parametrize("recipe", [pretrain, finetune])
@pytest.mark.parametrize("case", REFUSED)
def test_a_request_is_refused_before_anything_is_read(tmp_path, recipe, case):
    changes, message = REFUSED[case]
    given = {"preset": "tiny", "options": OPTIONS, "validation": tmp_path / "missing.jsonl", **changes}
    with pytest.raises(ValueError, match=message):
        recipe(tmp_path / "missing.jsonl", tmp_path / "run", **given)
    assert not list(tmp_path.iterdir())


def test_a_start_and_a_tokenizer_are_refused(tmp_path):
    with pytest.raises(ValueError, match="brings its tokenizer. Received: `start` and `tokenizer`. Leave out one of them."):
        finetune(tmp_path / "a.jsonl", tmp_path / "run", start=tmp_path / "start", tokenizer=tokenizer())


@pytest.mark.parametrize("recipe", [pretrain, finetune])
def test_a_missing_file_leaves_no_interrupted_run_behind(tmp_path, recipe):
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match="The data set must be an existing file or folder.*missing.jsonl"):
            recipe(tmp_path / "missing.jsonl", tmp_path / "run", preset="tiny", options=OPTIONS)
        with pytest.raises(FileNotFoundError, match="The data set must be an existing file or folder.*missing.jsonl"):
            recipe("sample", tmp_path / "run", validation=tmp_path / "missing.jsonl", preset="tiny", options=OPTIONS)
    assert not list(tmp_path.iterdir())


def test_a_longer_row_than_the_run_to_start_from(pretrained, folder):
    options = TrainingOptions(sequence_length=65)
    with pytest.raises(ValueError, match="`sequence_length` must not exceed the model's context length. Received: 65 and 64"):
        finetune(folder / "held-out.jsonl", folder / "longer", start=pretrained.path, options=options)


def test_an_interrupted_run_is_replaced_only_when_all_is_known_to_be_usable(tmp_path, pretrained):
    state = tmp_path / "run.training" / "state.json"
    state.parent.mkdir()
    state.write_text("{}")
    for wrong in ({"start": tmp_path / "none"}, {"validation": tmp_path / "none"}, {"tokenizer": tmp_path / "none"}):
        with pytest.raises((FileNotFoundError, ValueError), match="none"):
            finetune("sample", tmp_path / "run", preset="tiny", options=OPTIONS, overwrite=True, **wrong)
    assert state.read_text() == "{}"
    place = Workplace(tmp_path / "run", resume=False, overwrite=True)
    place.begin()
    assert not state.exists() and not place.interrupted


def test_a_run_may_be_made_where_one_is(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    place = Workplace(Path("."), resume=False, overwrite=False)
    assert (place.out, place.folder) == (tmp_path / "here", tmp_path / "here.training")


def test_an_existing_output_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    Workplace(tmp_path / "run", resume=False, overwrite=False)
    (tmp_path / "run" / "recipe.json").touch()
    with pytest.raises(FileExistsError, match="run exists already. Choose another name, or allow overwriting it."):
        finetune("sample", tmp_path / "run", preset="tiny", options=OPTIONS)
    Workplace(tmp_path / "run", resume=False, overwrite=True)
    assert (tmp_path / "run" / "recipe.json").exists(), "it is replaced only by a finished run"


def test_a_file_in_the_place_of_the_output(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(NotADirectoryError, match="The run directory must not be a file. Received: .*run. Choose another name."):
        finetune("sample", tmp_path / "run", preset="tiny", options=OPTIONS, overwrite=True)


@pytest.mark.parametrize("count", [2, 20, 100, 400])
def test_any_number_of_dialogues_gets_a_tokenizer(tmp_path, count):
    texts = [message.content for dialogue in conversations()[:count] for message in dialogue.messages]
    made = Workplace(tmp_path / "run", resume=False, overwrite=False).tokenizer(None, texts, preset="smolite-small")
    assert made.vocab_size % 32 == 0 and made.vocab_size >= 264
    spelt_out = [character for character in set("".join(texts)) if len(made.encode(character)) > 3]
    assert len(spelt_out) <= 0.03 * len(set("".join(texts)))


def test_a_single_short_dialogue_gets_a_tokenizer_too(tmp_path):
    """Its few pairs of characters fill no vocabulary of a multiple of 32."""
    made = Workplace(tmp_path / "run", resume=False, overwrite=False).tokenizer(None, ["안녕", "안녕하세요"], preset="tiny")
    assert 262 < made.vocab_size < 288 and made.decode(made.encode("안녕하세요")) == "안녕하세요"


def test_the_vocabulary_grows_with_the_text_up_to_that_of_the_preset():
    assert vocabulary_for(["가" * 40_000], most=8192) == 992
    assert vocabulary_for(["가" * 4_000_000], most=8192) == 8192


def test_a_recipe_takes_a_model_an_optimizer_and_callbacks(folder, tmp_path):
    """As `fit` and `compile` do: the model itself learns, at the rate of the optimizer alone, and the callback is called."""
    model, seen = CausalLM(TINY), []
    before = model.get_weights()
    own = {"model": model, "optimizer": keras.optimizers.SGD(0.25)}
    own["callbacks"] = [keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(logs["val_loss"]))]
    given = {"validation": folder / "held-out.jsonl", "tokenizer": tokenizer(), "options": OPTIONS}
    run = finetune(folder / "held-out.jsonl", tmp_path / "run", **given, **own)
    assert run.model is model and model.optimizer is own["optimizer"] and len(seen) == OPTIONS.epochs
    assert max(np.abs(old - new).max() for old, new in zip(before, model.get_weights(), strict=True)) > 1e-4
    assert {row["learning_rate"] for row in run.recipe["log"]} == {0.25}
    for ours, again in zip(model.get_weights(), checkpoint.load(tmp_path / "run").model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, again)


OWN_REFUSED = {
    "start": ({"start": "run"}, "A recipe trains one model. Received: `start` and `model`. Leave out one of them."),
    "tokenizer": ({}, "needs its tokenizer. Received: none. Give `tokenizer`, or set `model.tokenizer`."),
    "length": ({"tokenizer": "t", "options": TrainingOptions(sequence_length=65)}, "`sequence_length` must not exceed"),
}


@pytest.mark.parametrize("case", OWN_REFUSED)
def test_a_model_that_a_recipe_cannot_train(tmp_path, case):
    given, message = OWN_REFUSED[case]
    with pytest.raises(ValueError, match=message):
        finetune(tmp_path / "missing.jsonl", tmp_path / "run", model=CausalLM(TINY), **given)


def test_a_model_of_another_kind_or_vocabulary(tmp_path, folder):
    with pytest.raises(ValueError, match="`model` must be one with an encoder. Received: a CausalLM. Take `finetune` for it."):
        train_pairs(tmp_path / "a.jsonl", tmp_path / "run", model=CausalLM(TINY), tokenizer=tokenizer(), options=OPTIONS)
    larger = CausalLM(dataclasses.replace(TINY, vocab_size=2048))
    with pytest.raises(ValueError, match="must have one vocabulary. Received: 1024 and 2048. Give the tokenizer"):
        finetune(folder / "held-out.jsonl", tmp_path / "run", model=larger, tokenizer=tokenizer(), options=OPTIONS)
