"""The verbs that write text: words in, text and an exit status out. Referees: the library called directly."""

import keras
import pytest
from test_cli import smolite
from tiny import TINY, tokenizer

from smolite.checkpoint import run as checkpoint
from smolite.cli import verbs
from smolite.data.template import Message
from smolite.generation.keras_engine import KerasEngine
from smolite.generation.replies import reply
from smolite.models.causal_lm import CausalLM


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory with random weights."""
    keras.utils.set_random_seed(3)
    return str(checkpoint.save(tmp_path_factory.mktemp("runs") / "run", CausalLM(TINY), tokenizer()))


def test_chat_answers_one_prompt(capsys, run):
    loaded = checkpoint.load(run)
    messages = [Message("system", "짧게"), Message("user", "안녕!")]
    expected = reply(KerasEngine(loaded.model), messages, tokenizer=loaded.tokenizer, max_new_tokens=8)
    words = ["--temperature", 0, "--max-new-tokens", 8, "--system", "짧게"]
    assert smolite(capsys, "chat", run, "--prompt", "안녕!", *words) == (0, f"{expected}\n", "")


def test_chat_goes_on_until_an_empty_line(capsys, run, monkeypatch):
    """The second prompt holds the first exchange; a question that is too long is refused and forgotten."""
    asked, seen = iter(["안녕!", "점심은 먹었어? " * 40, "뭐 해?", ""]), []
    monkeypatch.setattr("builtins.input", lambda prompt: next(asked))

    def answer(engine, messages, **settings):
        seen.append([message.content for message in messages])
        if len(messages[-1].content) > 100:
            raise ValueError("A prompt must have 1 to 64 tokens.")
        yield "네."

    monkeypatch.setattr(verbs, "stream_reply", answer)
    status, out, _ = smolite(capsys, "chat", run)
    assert status == 0 and out.count("네.\n") == 2 and "A prompt must have 1 to 64 tokens." in out
    assert seen[0] == ["안녕!"] and seen[2] == ["안녕!", "네.", "뭐 해?"]


def test_chat_without_its_file_says_so(capsys, run):
    status, _, errors = smolite(capsys, "chat", run, "--prompt", "안녕!", "--engine", "int8")
    assert status == 1 and errors.startswith("smolite chat: ") and ".tflite" in errors


@pytest.mark.parametrize("words", [["chat", "RUN", "--prompt", "안녕"], ["generate", "RUN", "안녕"]])
def test_numbers_are_refused_before_anything_is_read_or_printed(capsys, words):
    for flag, message in (
        ("--temperature", "must be 0 or above"),
        ("--max-new-tokens", "must be a positive whole number"),
    ):
        status, out, errors = smolite(capsys, *words, flag, -1)
        assert (status, out) == (1, "") and message in errors


def test_a_prompt_that_is_too_long_is_refused_before_it_is_printed(capsys, run):
    status, out, errors = smolite(capsys, "generate", run, "점심은 먹었어? " * 40)
    assert (status, out) == (1, "") and "64" in errors


def test_generate_goes_on_from_the_prompt(capsys, run):
    words = ["--max-new-tokens", 6, "--seed", 5]
    first, second = (smolite(capsys, "generate", run, "오늘 점심은", *words) for _ in range(2))
    assert first == second and first[0] == 0 and first[1].startswith("오늘 점심은") and len(first[1]) > len("오늘 점심은\n")


def test_generate_writes_on_where_the_tokenizer_has_no_end(capsys, run, monkeypatch):
    monkeypatch.setattr(type(tokenizer()), "end_id", property(lambda self: self._marker_id("<finis>")))
    status, out, _ = smolite(capsys, "generate", run, "오늘", "--max-new-tokens", 6)
    assert status == 0 and out.startswith("오늘")


def test_a_gguf_file_chats(capsys, run):
    smolite(capsys, "export", run, "--format", "gguf", "--overwrite")
    words = ["chat", run, "--prompt", "안녕", "--max-new-tokens", 6, "--temperature", 0]
    keras, gguf = (smolite(capsys, *words, "--engine", engine) for engine in ("keras", "gguf"))
    assert keras[0] == gguf[0] == 0 and keras[1] == gguf[1]
