"""The app without a browser. Referees: `generate` and `reply`, called directly. test_app_browser.py looks at the page."""

import dataclasses
import html
import json
import sys
import threading
from pathlib import Path

import keras
import pytest
from exported import exported_run, run_apart
from tiny import TINY, tokenizer

from smolite.checkpoint import run as checkpoint
from smolite.cli import parser as cli
from smolite.data.template import Message
from smolite.exporters.litert.engine import TFLiteEngine
from smolite.generation.keras_engine import KerasEngine
from smolite.generation.loop import generate
from smolite.generation.replies import reply
from smolite.generation.sampling import GREEDY, Sampling
from smolite.generation.seq2seq_engine import Seq2SeqEngine
from smolite.models.causal_lm import CausalLM
from smolite.models.seq2seq_lm import Seq2SeqLM
from smolite.serving import talker as answers
from smolite.serving.open import engine_names, open_engine
from smolite.serving.page import answering, build_app, continuing, displayed
from smolite.serving.talker import Answer, Talker

PROMPT = "오늘 점심은"
SHARP, WILD = Sampling(temperature=1e-6), Sampling(temperature=1.5, seed=4)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A run directory with random weights, which rarely ends a text."""
    keras.utils.set_random_seed(3)
    return checkpoint.save(tmp_path_factory.mktemp("runs") / "run", CausalLM(TINY), tokenizer())


@pytest.fixture(scope="module")
def talker(path):
    return Talker(checkpoint.load(path))


@pytest.fixture(autouse=True)
def every_piece(monkeypatch):
    """Shows every piece of text, however quickly it follows the last."""
    monkeypatch.setattr(answers, "PAUSE", 0)


def continued(talker, *, max_new_tokens=24, sampling=GREEDY):
    """What `generate` makes of the prompt: the ids, and the text of both."""
    ids, engine = talker.run.tokenizer.encode(PROMPT), KerasEngine(talker.run.model)
    (new,) = generate(engine, [ids], max_new_tokens=max_new_tokens, sampling=sampling)
    return new, talker.run.tokenizer.decode([*ids, *new])


def controls(*, engine="keras", temperature=1.0, max_new_tokens=24, top_k=100, top_p=1.0, seed=0):
    return engine, temperature, max_new_tokens, top_k, top_p, seed


def last_of(iterator):
    return list(iterator)[-1]


def test_a_text_grows_to_what_generate_gives(talker):
    new, expected = continued(talker)
    shown = list(talker.continue_text(PROMPT, sampling=GREEDY, max_new_tokens=24))
    texts = [answer.text for answer in shown]
    assert texts[-1] == expected and len(set(texts)) > 10
    assert all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:], strict=False))
    assert texts[0].startswith(PROMPT) and shown[-1].tokens == len(new) == 24
    assert all(0 < answer.first <= answer.seconds for answer in shown)


def test_a_chat_grows_to_what_reply_gives(talker):
    messages = [Message("user", "안녕!"), Message("assistant", "네."), Message("user", "뭐 해?")]
    expected = reply(KerasEngine(talker.run.model), messages, tokenizer=tokenizer(), sampling=WILD, max_new_tokens=20)
    texts = [answer.text for answer in talker.chat(messages, sampling=WILD, max_new_tokens=20)]
    assert texts[-1] == expected and len(set(texts)) > 5


def test_text_is_shown_in_steps_that_people_can_see(talker, monkeypatch):
    monkeypatch.setattr(answers, "PAUSE", 3600)
    shown = list(talker.continue_text(PROMPT, sampling=GREEDY, max_new_tokens=24))
    assert [answer.text for answer in shown] == [continued(talker)[1]]


@pytest.mark.parametrize("count", [10, 37, 500])
def test_as_many_tokens_as_asked_for(talker, monkeypatch, count):
    """Also beyond the context of 64; where nothing ends the text."""
    monkeypatch.setattr(answers, "end_ids", lambda _: [])
    new, expected = continued(talker, max_new_tokens=count, sampling=Sampling(top_k=100))
    assert len(new) == count
    text, figures = last_of(continuing(talker)(PROMPT, *controls(max_new_tokens=count)))
    assert text == expected and figures.startswith(f"{count} tokens · first after ")


@pytest.mark.parametrize("given", [{"temperature": 1e-6}, {"top_k": 1}, {"top_p": 1e-6}])
def test_each_control_reaches_the_sampler(talker, given):
    """Each alone makes the text the greedy one, which chance does not give."""
    _, greedy = continued(talker)
    assert last_of(continuing(talker)(PROMPT, *controls(**given)))[0] == greedy
    by_chance = {last_of(continuing(talker)(PROMPT, *controls(seed=seed)))[0] for seed in (0, 0, 1)}
    assert len(by_chance) == 2 and greedy not in by_chance


def test_two_people_never_mix_their_caches(talker):
    """The second asks while the first reads, and waits."""
    alone = [last_of(talker.continue_text(text, sampling=WILD, max_new_tokens=20)).text for text in ("오늘", "내일은 비가")]
    first, second = (talker.continue_text(text, sampling=WILD, max_new_tokens=20) for text in ("오늘", "내일은 비가"))
    next(first)
    heard = []
    other = threading.Thread(target=lambda: heard.append(last_of(second).text), daemon=True)
    other.start()
    other.join(timeout=0.3)
    assert not heard
    together = [last_of(first).text, *(other.join(timeout=30) or heard)]
    assert together == alone


@pytest.mark.parametrize("end", ["close", "drop", "fail"])
def test_an_answer_given_up_makes_room_for_the_next(talker, monkeypatch, end):
    given_up = talker.continue_text(PROMPT, sampling=GREEDY, max_new_tokens=24)
    next(given_up)
    if end == "fail":
        monkeypatch.setattr(KerasEngine, "step", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(given_up)
        monkeypatch.undo()
    given_up = given_up.close() if end == "close" else None
    assert not talker._lock.locked()


def test_figures():
    assert Answer(text="", tokens=3, first=0.5, seconds=1.5).figures == "3 tokens · first after 500 ms · 2 tokens/s"
    assert Answer(text="", tokens=1, first=0.25, seconds=0.25).figures == "1 token · first after 250 ms"


def test_a_chat_goes_on_with_what_was_said(talker):
    handler, first = answering(talker), [Message("user", "안녕!")]
    shown = list(handler([], "안녕!", *controls(temperature=1e-6)))
    assert shown[0] == ([], displayed(first), "", "…")
    turns = shown[-1][0]
    expected = reply(KerasEngine(talker.run.model), first, tokenizer=tokenizer(), max_new_tokens=24)
    assert turns == [*first, Message("assistant", expected)] and shown[-1][1] == displayed(turns)
    more = last_of(handler(turns, "뭐 해?", *controls(temperature=1e-6)))[0]
    said = [*turns, Message("user", "뭐 해?")]
    expected = reply(KerasEngine(talker.run.model), said, tokenizer=tokenizer(), max_new_tokens=24)
    assert more == [*said, Message("assistant", expected)]


@pytest.mark.parametrize(
    ("prompt", "given", "message"),
    [
        ("", {}, "The prompt must have text. Received: nothing."),
        (" \n", {}, "The prompt must have text. Received: nothing."),
        ("점심은? " * 60, {}, "A prompt must have 1 to 64 tokens, the engine's `context_length`. Received: "),
        (PROMPT, {"engine": "model_int8.tflite"}, "An exported file was expected. Received: "),
        (PROMPT, {"engine": "x.tflite"}, "The engine must be one of keras. Received: x.tflite."),
        (PROMPT, {"seed": None}, "`seed` must be a whole number, 0 or above. Received: None."),
    ],
)
def test_errors_stand_under_the_answer_and_nothing_is_lost(talker, prompt, given, message):
    turns = [Message("user", "안녕!"), Message("assistant", "네.")]
    shown = last_of(answering(talker)(turns, prompt, *controls(**given)))
    assert shown[:3] == (turns, displayed(turns), prompt) and shown[3].startswith(message)
    text, error = last_of(continuing(talker)(prompt, *controls(**given)))
    assert text == "" and error.startswith(message)
    assert not talker._lock.locked()


def test_a_run_without_a_template_only_continues(talker, path):
    run = checkpoint.load(path)
    plain = Talker(run.replace(template=None))
    with pytest.raises(ValueError, match="Chatting needs a chat template. Received: .*run without one. Let it continue"):
        plain.chat([Message("user", "안녕!")], sampling=GREEDY, max_new_tokens=4)
    assert last_of(plain.continue_text(PROMPT, sampling=GREEDY, max_new_tokens=24)).text == continued(talker)[1]


def test_a_text_ends_where_the_model_ends_it(talker, monkeypatch):
    """An id that the greedy text has is made the end; it is counted, not shown."""
    new, _ = continued(talker)
    ids, first = tokenizer().encode(PROMPT), new.index(new[8])
    monkeypatch.setattr(type(tokenizer()), "end_id", new[8])
    ended = last_of(talker.continue_text(PROMPT, sampling=GREEDY, max_new_tokens=24))
    assert ended.text == tokenizer().decode([*ids, *new[:first]]) and ended.tokens == first + 1 < 24


def test_an_engine_is_opened_once_and_only_when_needed(path, monkeypatch):
    opened, fresh = [], Talker(checkpoint.load(path))
    monkeypatch.setattr(answers, "open_engine", lambda run, name: opened.append(name) or open_engine(run, name))
    assert not opened
    for _ in range(2):
        last_of(fresh.continue_text(PROMPT, sampling=GREEDY, max_new_tokens=2))
    assert opened == ["keras"]


def test_of_an_encoder_decoder_there_is_only_what_it_writes(path):
    model = Seq2SeqLM(dataclasses.replace(TINY, num_encoder_layers=1))
    engine, ids = Seq2SeqEngine(model, start_id=tokenizer().start_id), tokenizer().encode(PROMPT)
    (new,) = generate(engine, [ids], max_new_tokens=12, stop_ids=[tokenizer().end_id])
    pair = Talker(checkpoint.Run.from_parts(path, model=model, tokenizer=tokenizer()))
    assert last_of(pair.continue_text(PROMPT, sampling=GREEDY, max_new_tokens=12)).text == tokenizer().decode(new)


def test_a_tokenizer_without_an_end_writes_on(talker, path, monkeypatch):
    run = checkpoint.load(path)
    monkeypatch.setattr(type(run.tokenizer), "end_id", property(lambda self: self._marker_id("<finis>")))
    assert last_of(Talker(run).continue_text(PROMPT, sampling=GREEDY, max_new_tokens=24)).tokens == 24


def test_markup_is_text():
    hostile = '<script>alert("1")</script> <b>&lt;</b>\n  **c**'
    (turn,) = displayed([Message("assistant", hostile)])
    (part,) = turn["content"]
    assert not set("<>") & set(part["text"]) and html.unescape(part["text"]) == hostile


@pytest.mark.slow
def test_exported_files_are_engines(tmp_path_factory):
    run = checkpoint.load(exported_run(tmp_path_factory))
    assert engine_names(run) == ["keras", "saved_model", "model.tflite", "model_int8.tflite"]
    file = run.path / "export" / "model_int8.tflite"
    messages = [Message("user", "안녕하세요")]
    expected = reply(TFLiteEngine(file), messages, tokenizer=run.tokenizer, max_new_tokens=12)
    exported = Talker(run)
    for _ in range(2):
        known = {"sampling": SHARP, "max_new_tokens": 12}
        assert last_of(exported.chat(messages, engine="model_int8.tflite", **known)).text == expected
    assert list(exported._engines) == ["model_int8.tflite"]


def test_what_an_engine_lacks_is_said(path, monkeypatch):
    run = checkpoint.load(path)
    (path / "export").mkdir(exist_ok=True)
    (path / "export" / "saved_model").mkdir(exist_ok=True)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ImportError, match=r'saved_model runs on TensorFlow. Run: pip install "smolite\[export\]"'):
        open_engine(run, "saved_model")
    (path / "export" / "saved_model").rmdir()


DESCRIBE = """
import json, sys
from pathlib import Path
from smolite import checkpoint
from smolite.serving.page import build_app, build_notice

with_template, run = build_app(sys.argv[1]), checkpoint.load(sys.argv[1])
checkpoint.load = lambda _: run.replace(template=None)
blocks = {block.label: block for block in with_template.blocks.values() if getattr(block, "label", None)}
from gradio.analytics import analytics_enabled
pages = {"chatting": with_template, "plain": build_app(sys.argv[1]), "notice": build_notice("<b>")}
queue = lambda page: [[each.api_name, each.concurrency_id, each.concurrency_limit] for each in page.fns.values()]
print(json.dumps({
    "limits": {name: [block.minimum, block.maximum] for name, block in blocks.items() if hasattr(block, "maximum")},
    "engines": [choice[1] for choice in blocks["Engine"].choices],
    "queues": {name: queue(page) for name, page in pages.items()},
    "analytics": [analytics_enabled(), *(page.analytics_enabled for page in pages.values())],
}))
"""


@pytest.mark.slow
def test_the_pages(path):
    """In a process of its own, since Gradio leaves event loops open."""
    found = json.loads(run_apart(DESCRIBE, path, GRADIO_ANALYTICS_ENABLED="True").splitlines()[-1])
    expected = {"Temperature": [0.1, 2.0], "Most new tokens": [10, 500], "Top-k": [1, 100], "Top-p": [0.05, 1.0]}
    assert expected.items() <= found["limits"].items() and found["engines"] == ["keras"]
    assert ["chat", "engines", 1] in found["queues"]["chatting"] and ["continue", "engines", 1] in found["queues"]["chatting"]
    assert [name for name, *_ in found["queues"]["plain"] if name in ("chat", "continue")] == ["continue"]
    assert found["queues"]["notice"] == [] and found["analytics"] == [False] * 4


def test_an_engine_that_is_not_there(path, capsys):
    with pytest.raises(ValueError, match="`engine` must be one of keras. Received: model.tflite. Export it first"):
        build_app(path, engine="model.tflite")
    assert cli.main(["app", str(path), "--engine", "int8"]) == 1
    assert capsys.readouterr().err.startswith("smolite app: `engine` must be one of keras. Received: model_int8.tflite.")
    assert cli.main(["app", str(Path("no-run"))]) == 1
    assert "smolite app: A run directory must exist. Received: no-run." in capsys.readouterr().err


def test_without_gradio_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r'The app is made with gradio. Run: pip install "smolite\[app\]"'):
        build_app("no-run")
