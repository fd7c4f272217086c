"""From a file of pairs to a run directory. Referees: the run read again, one without cross-attention, and logarithms."""

import dataclasses
import functools
import json
import re

import numpy as np
import pytest
from tiny import TINY

import smolite
from smolite.checkpoint import run as checkpoint
from smolite.cli import parser as cli
from smolite.data.pairs import read_pairs
from smolite.data.sources import resolve_dataset
from smolite.data.template import ChatTemplate, Message
from smolite.evaluation.likelihood import evaluate_pairs
from smolite.evaluation.pairs import PairScorer, best_targets, sentences, spans
from smolite.generation.replies import fit_source, reply
from smolite.generation.sampling import GREEDY
from smolite.generation.seq2seq_engine import Seq2SeqEngine, engine_for_model
from smolite.models.config import PRESETS
from smolite.models.seq2seq_lm import Seq2SeqLM
from smolite.serving.talker import Talker
from smolite.text.sentencepiece_model import train_model
from smolite.text.tokenizer import Tokenizer
from smolite.training.fit import finetune, train_pairs
from smolite.training.options import TrainingOptions
from smolite.training.starts import new_model

OPTIONS = TrainingOptions(epochs=2, batch_size=16, sequence_length=48, learning_rate=5e-3)


@functools.cache
def tokenizer():
    """1,024 pieces of both languages."""
    texts = [text for pair in read_pairs(resolve_dataset("sample-pairs")) for text in (pair.source, pair.target)]
    return Tokenizer(train_model(texts, vocab_size=TINY.vocab_size, model_type="bpe", character_coverage=1.0))


@pytest.fixture(scope="module", autouse=True)
def tiny_preset():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", TINY)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the bundled pairs, and what its training printed."""
    printed = []
    given = {"validation": "sample-pairs-heldout", "tokenizer": tokenizer(), "preset": "tiny", "options": OPTIONS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *text, **_: printed.append(" ".join(map(str, text))))
        run = train_pairs("sample-pairs", tmp_path_factory.mktemp("pairs") / "run", **given)
    return run, "\n".join(printed)


def test_the_run_directory_holds_the_model_and_no_template(trained):
    run, _ = trained
    again = checkpoint.load(run.path)
    assert isinstance(again.model, Seq2SeqLM) and again.template is None
    assert again.model.config == dataclasses.replace(TINY, num_encoder_layers=1)
    for left, right in zip(run.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)
    config = json.loads((run.path / "config.json").read_text("utf-8"))
    assert config["model_type"] == "smolite" and config["smolite"]["num_encoder_layers"] == 1
    assert "chat_template" not in (run.path / "tokenizer_config.json").read_text("utf-8")
    assert (run.recipe["verb"], run.recipe["preset"]) == ("pairs", "tiny")


def test_the_log_has_the_figures_of_the_held_out_pairs(trained):
    run, printed = trained
    assert re.search(r"218 whole pairs → \d+ rows of \d+ and 48, 9\d% full", printed)
    held_out = read_pairs(resolve_dataset("sample-pairs-heldout"))
    assert f"  {held_out[0].source} → " in printed
    bits = evaluate_pairs(run.model, held_out, tokenizer=run.tokenizer).bits_per_character
    assert bits == pytest.approx(run.recipe["log"][-1]["val_bits_per_character"], rel=1e-4)
    assert run.recipe["log"][1]["loss"] < run.recipe["log"][0]["loss"]


def test_a_run_can_be_gone_on_with(trained, tmp_path):
    options = dataclasses.replace(OPTIONS, epochs=1, learning_rate=1e-6)
    again = train_pairs("sample-pairs", tmp_path / "more", start=trained[0].path, options=options)
    np.testing.assert_allclose(again.model.get_weights()[1], trained[0].model.get_weights()[1], atol=1e-3)
    assert again.recipe["start"] == str(trained[0].path)


def test_the_command_line_writes_and_scores(trained, capsys):
    path = str(trained[0].path)
    assert cli.main(["generate", path, "비가 와요.", "--temperature", "0", "--max-new-tokens", "9"]) == 0
    engine = engine_for_model(trained[0].model, tokenizer())
    (ids,) = smolite.generate(engine, [tokenizer().encode("비가 와요.")], max_new_tokens=9, stop_ids=[tokenizer().end_id])
    assert capsys.readouterr().out == tokenizer().decode(ids) + "\n"
    assert cli.main(["evaluate", path, "sample-pairs-heldout"]) == 0
    held_out = read_pairs(resolve_dataset("sample-pairs-heldout"))
    assert capsys.readouterr().out == evaluate_pairs(trained[0].model, held_out, tokenizer=tokenizer()).summary() + "\n"
    assert cli.main(["evaluate", path, "sample-pairs-heldout", "--engine", "int8"]) == 1
    assert "Pairs are evaluated with the engine keras. Received: int8" in capsys.readouterr().err


def test_an_answer_is_written_for_all_that_was_said(trained):
    """Which is what `dialogue_pairs` trains; where there is no room, the oldest turns are left out."""
    turns = [Message("user", "안녕하세요"), Message("assistant", "네"), Message("user", "뭐 해요?")]
    engine = Seq2SeqEngine(trained[0].model, start_id=tokenizer().start_id, target_length=8)
    source = tokenizer().encode("안녕하세요\n네\n뭐 해요?")
    (ids,) = smolite.generate(engine, [source], stop_ids=[tokenizer().end_id])
    assert reply(engine, turns, tokenizer=tokenizer()) == tokenizer().decode(ids)
    assert fit_source(turns, tokenizer(), room=len(source)) == source
    assert fit_source(turns, tokenizer(), room=len(source) - 1) == tokenizer().encode("네\n뭐 해요?")
    assert fit_source(turns, tokenizer(), room=1) == tokenizer().encode("뭐 해요?")


def test_the_page_talks_with_it_too(trained):
    talker, given = Talker(trained[0]), {"sampling": GREEDY, "max_new_tokens": 9}
    *_, answer = talker.chat([Message("user", "비가 와요.")], **given)
    *_, text = talker.continue_text("비가 와요.", **given)
    engine = Seq2SeqEngine(trained[0].model, start_id=tokenizer().start_id, target_length=9)
    (ids,) = smolite.generate(engine, [tokenizer().encode("비가 와요.")], stop_ids=[tokenizer().end_id])
    assert answer.text == text.text == tokenizer().decode(ids)


def test_what_the_recipe_and_the_run_directory_refuse(trained, tmp_path):
    causal = checkpoint.save(tmp_path / "causal", smolite.CausalLM(TINY), tokenizer())
    with pytest.raises(ValueError, match="must be a run of a model with an encoder.*causal.*`smolite finetune` goes on"):
        train_pairs("sample-pairs", tmp_path / "out", start=causal, options=OPTIONS)
    with pytest.raises(ValueError, match="must be a run of a model without an encoder.*`smolite pairs` goes on with"):
        finetune("sample", tmp_path / "out", start=trained[0].path, options=OPTIONS)
    with pytest.raises(ValueError, match="brings its tokenizer"):
        train_pairs("sample-pairs", tmp_path / "out", start=trained[0].path, tokenizer=tokenizer())
    with pytest.raises(ValueError, match="`sequence_length` must not exceed.*Received: 65 and 64"):
        train_pairs("sample-pairs", tmp_path / "out", preset="tiny", options=TrainingOptions(sequence_length=65))
    with pytest.raises(ValueError, match="An encoder-decoder has no chat template"):
        checkpoint.save(tmp_path / "run", trained[0].model, tokenizer(), template=ChatTemplate())
    deep = new_model("smolite-medium", vocab_size=64, options=OPTIONS, has_encoder=True)
    assert deep.config.num_encoder_layers == 9


def test_scores_are_those_of_the_whole_set_and_choose_by_character(trained):
    run = trained[0]
    pairs = read_pairs(resolve_dataset("sample-pairs-heldout"))[:5]
    scorer = PairScorer(run.model, run.tokenizer, batch_size=2)
    each = [scorer.score(pair.source, [pair.target])[0] for pair in pairs]
    assert sum(each) == pytest.approx(evaluate_pairs(run.model, pairs, tokenizer=run.tokenizer).nll, rel=1e-4)
    targets = [pair.target for pair in pairs]
    nll = scorer.score(pairs[0].source, targets)
    assert nll[0] == pytest.approx(each[0], rel=1e-4)
    order = np.argsort(nll / [len(text) + 1 for text in targets])
    assert best_targets(scorer, pairs[0].source, targets, count=2) == [targets[place] for place in sorted(order[:2])]
    with pytest.raises(ValueError, match="must have less than 64 tokens, the context length. Received: 1 that"):
        scorer.score("안녕", ["hi", "long " * 80])
    with pytest.raises(ValueError, match="must be chosen from. Received: 0"):
        best_targets(scorer, "안녕", [])


def test_sentences_and_spans_of_the_docstrings():
    assert sentences("응. 가자!\n왜?") == ["응.", "가자!", "왜?"]
    assert spans("그는 왔다. 나도.", most_words=2) == ["그는", "그는 왔다", "왔다", "나도"]
