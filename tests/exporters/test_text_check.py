"""What LiteRT-LM answers and how likely it finds an answer, compared with the Keras model; and faults that must be seen."""

import itertools
import json
import shutil

import numpy as np
import pytest
from bundled import lively_bundles, small_bundles, user
from exported import SLOTS, TEXTS, keras_logits
from tiny import conversations

from smolite.data.template import ChatTemplate
from smolite.evaluation.traces import Trace
from smolite.exporters.delivery.report import Row
from smolite.exporters.litertlm import proof as text_check
from smolite.exporters.litertlm.build import bundle
from smolite.exporters.litertlm.engine import LiteRTLMEngine
from smolite.exporters.litertlm.private_markers import PrivateTemplate
from smolite.exporters.litertlm.proof import asker, check_answers, count_same, score_answers
from smolite.exporters.verification.reference import Case
from smolite.exporters.verification.verification import verify
from smolite.generation.keras_engine import KerasEngine
from smolite.generation.loop import generate
from smolite.text.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_bundles(tmp_path_factory)


def test_log_probabilities_are_those_of_the_keras_model(small):
    run, engine = small[0], LiteRTLMEngine(small[1] / "model.litertlm")
    template = PrivateTemplate(run.template, run.tokenizer)
    prompt, target = run.template.prompt(user("abc"), run.tokenizer), [*run.tokenizer.encode("반가워요"), 3]
    logits = keras_logits(run.model, prompt + target)[len(prompt) - 1 : -1]
    expected = logits[np.arange(len(target)), target] - np.log(np.exp(logits).sum(-1))
    found = engine.score(template.render(user("abc")), template.spoken("반가워요") + template.stop)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_large_log_probabilities_differ_by_a_share(small, monkeypatch):
    """Of them float32 rounds a share, too; small ones are compared as they are."""
    run, (dialogue,) = small[0], conversations()[:1]
    for nll, share in ((8.0, 5e-4 / 8), (0.5, 5e-4)):
        found = Trace(np.array([nll]), np.array([0]), np.array([0]), 1)
        monkeypatch.setattr(text_check, "trace_at_once", lambda *_, found=found, **__: found)
        monkeypatch.setattr(text_check, "score_answers", lambda *_, nll=nll: np.array([-nll - 5e-4]))
        row = Row(artifact="model.litertlm", runtime="LiteRT-LM")
        text_check.check_scores(row, None, run, [dialogue], slots=SLOTS)
        assert row.problems == [] and row.logits == pytest.approx(share)


def test_verify_passes_a_good_file_and_measures_a_quantized_one(small):
    run, folder = small
    turns = [{"from": "human", "value": "안녕"}, {"from": "gpt", "value": "반가워"}] * 2
    (folder / "short.jsonl").write_text(json.dumps({"conversations": turns}), "utf-8")
    report = verify(run.path, out=folder, dialogues=folder / "short.jsonl", max_new_tokens=12)
    assert report.passed, report.table()
    rows = {row.artifact: row for row in report.rows}
    exact, rough = rows["model.litertlm"], rows["model_int8.litertlm"]
    assert exact.runtime == "LiteRT-LM" and 0 < exact.logits < 1e-4 < rough.logits
    assert exact.tokens == exact.num_tokens > 10
    assert exact.bits_per_character == pytest.approx(rows["Keras model"].bits_per_character, abs=1e-5)
    assert rough.bits_per_character != exact.bits_per_character and rough.tokens <= rough.num_tokens
    assert {"tokenizer in model.litertlm", "tokenizer in model_int8.litertlm"} < set(rows)


def problems_of(run, folder):
    report = verify(run.path, out=folder, prompts=["안녕하세요"], max_new_tokens=6)
    return {row.artifact: row.problems for row in report.rows if row.problems}


def test_other_weights_turn_verify_red(small, tmp_path):
    shutil.copy(small[1] / "model_int8.litertlm", tmp_path / "model.litertlm")
    assert "a log probability differs by" in problems_of(small[0], tmp_path)["model.litertlm"][0]


def test_another_tokenizer_turns_verify_red(small, tmp_path):
    run = small[0]
    other = train_tokenizer([text[::-1] for text in TEXTS], tmp_path / "other.model", vocab_size=330)
    model = run.path / "export" / "model.tflite"
    bundle(run.replace(tokenizer=other), model, tmp_path / "model.litertlm", cache_length=SLOTS)
    found = problems_of(run, tmp_path)
    assert "prompts have other ids" in found["tokenizer in model.litertlm"][0]


def test_another_template_turns_verify_red(small, tmp_path):
    run = small[0]
    other = ChatTemplate(user_suffix="<end>", assistant_suffix="<sep>")
    model = run.path / "export" / "model.tflite"
    bundle(run.replace(template=other), model, tmp_path / "model.litertlm", cache_length=SLOTS)
    found = problems_of(run, tmp_path)["tokenizer in model.litertlm"]
    assert "its template writes" in found[0] and found[1] == "its answers end with (4,), the model's with 3"


def test_a_file_that_is_none_has_a_row_with_a_problem(small, tmp_path):
    (tmp_path / "model.litertlm").write_bytes(b"LITERTLM, but not really")
    assert "LiteRT-LM refuses it: A whole .litertlm file was expected" in problems_of(small[0], tmp_path)["model.litertlm"][0]


def test_what_an_answer_can_tell(small):
    run = small[0]
    yes, byte = run.tokenizer.encode("반가워요"), 6 + 0xEB
    assert run.tokenizer.decode(yes) == "반가워요"
    assert count_same(" 반가워요", [*yes, 3], run) == (len(yes) + 1, len(yes) + 1)
    assert count_same(" 반가워요 더", [*yes, 3], run) == (len(yes), len(yes) + 1)
    assert count_same("", [3], run) == (1, 1)
    assert count_same(" 안녕", [*yes, 3], run)[0] < len(yes)
    assert count_same(" 반가워요", [*yes, byte, yes[0], yes[0]], run) == (len(yes) + 1, len(yes) + 1)
    assert count_same(" 반가워요", [*yes, 2, 5, 5], run) == (len(yes), len(yes))


@pytest.mark.parametrize("must_agree", [True, False])
def test_another_answer_is_a_problem_unless_the_file_is_quantized(small, must_agree):
    run, engine = small[0], LiteRTLMEngine(small[1] / "model.litertlm")
    prompt = run.template.prompt(user("abc"), run.tokenizer)
    sure, torn = (
        Case(prompt=prompt, reply=[270, 312], logits=logits, written=logits, caches={})
        for logits in (np.eye(2, 330), np.zeros((2, 330)))
    )
    row = Row(artifact="a file", runtime="LiteRT-LM")
    settings = {"slots": engine.context_length, "tie": 1e-4, "must_agree": must_agree}
    check_answers(row, asker(engine, run), run, [("abc", torn), ("abc", sure)], **settings)
    assert (row.tokens, row.num_tokens) == (0, 2)
    assert [problem.split(" to ")[1][:18] for problem in row.problems] == ["'abc', the model '"] * must_agree


@pytest.fixture(scope="module")
def lively(tmp_path_factory):
    """A run that talks in whole pieces, LiteRT-LM on its two bundles, and what Keras answers to a hundred questions."""
    run, folder = lively_bundles(tmp_path_factory)
    engines = {name: LiteRTLMEngine(folder / f"{name}.litertlm") for name in ("model", "model_int8")}
    words = ["안녕하세요", "오늘", "점심", "뭐", "먹을까?", "나는", "학생이에요", "반가워요", "abc", "7"]
    asked = [f"{first} {second}" for first in words for second in words]
    prompts = [run.template.prompt(user(text), run.tokenizer) for text in asked]
    answers = generate(KerasEngine(run.model, batch_size=len(asked)), prompts, max_new_tokens=64, stop_ids=(3,))
    return run, engines, dict(zip(asked, answers, strict=True))


def text_of(run, ids):
    """What a runtime writes for whole pieces, one after the other."""
    return "".join(run.tokenizer.pieces(ids)).replace("▁", " ")


@pytest.mark.slow
def test_twenty_answers_of_64_tokens_are_those_of_keras(lively, record_property):
    run, engines, answers = lively
    long = {asked: ids for asked, ids in answers.items() if len(ids) == 64}
    asked = list(long)[:20]
    template = PrivateTemplate(run.template, run.tokenizer)
    assert len(asked) == 20 and np.mean([len(set(long[text])) for text in asked]) > 12
    same = 0
    for text in asked:
        prompt = template.render(user(text))
        assert engines["model"].reply(prompt, max_new_tokens=64) == text_of(run, long[text])
        same += count_same(engines["model_int8"].reply(prompt, max_new_tokens=64), long[text], run)[0]
    record_property("int8 tokens before the first difference", f"{same} of {20 * 64}")
    print(f"int8: {same} of {20 * 64} tokens before the first difference")
    assert same > 0


@pytest.mark.slow
@pytest.mark.parametrize("after", ["", "\n"])
def test_a_chat_over_three_turns_goes_as_in_keras(lively, after, tmp_path):
    """Every answer but the last ends by itself; its marker is in the cache then, and what the template has after it."""
    run, _, answers = lively
    other = run.replace(template=ChatTemplate(assistant_suffix=f"<end>{after}"))
    bundle(other, run.path.parent / "model.tflite", tmp_path / "model.litertlm", cache_length=160)
    engine, keras = LiteRTLMEngine(tmp_path / "model.litertlm"), KerasEngine(run.model)
    asked = [text for text, ids in answers.items() if 3 <= len(ids) < 20][:4]
    chats = 0
    for first, second in itertools.permutations(asked, 2):
        ids, said, expected, ended = [], [], [], True
        for text in (first, second, "안녕"):
            if ended:
                ids += run.template.prompt(user(text), run.tokenizer)
                reply = generate(keras, [ids], max_new_tokens=30, stop_ids=(3,))[0]
                ids += [*reply, 3, *run.tokenizer.encode(after)]
                said, expected, ended = [*said, text], [*expected, text_of(run, reply)], len(reply) < 30
        assert engine.converse(said, max_new_tokens=30) == expected
        chats += len(expected) == 3
    assert chats


@pytest.mark.slow
def test_scores_of_quantized_answers_are_near(lively):
    run, engines, _ = lively
    dialogue = next(each for each in conversations() if len(run.template.render(each, run.tokenizer)[0]) < 120)
    exact, rough = (score_answers(engines[name], run, dialogue) for name in ("model", "model_int8"))
    assert 0 < np.abs(exact - rough).max() < 1.0
