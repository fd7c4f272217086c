"""The command line as a user meets it: words in, text and an exit status out. Referees: the library called directly."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest
from tiny import TINY, conversations, tokenizer, write_dialogues

from smolite.checkpoint import run as checkpoint
from smolite.cli import parser as cli
from smolite.cli import verbs
from smolite.cli.catalogue import VERBS
from smolite.data.template import Conversation, Message
from smolite.evaluation.likelihood import evaluate
from smolite.models.causal_lm import CausalLM
from smolite.models.config import PRESETS
from smolite.text.tokenizer import Tokenizer
from smolite.training.options import TrainingOptions

ROOT = Path(__file__).parents[2]
HELP_OF_ALL = f"""
import contextlib, io, sys
sys.path.insert(0, {str(ROOT)!r})
from smolite.cli.parser import main
for words in [[], *([verb] for verb in {list(VERBS)!r})]:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as text:
        main([*words, "--help"])
    assert "usage: smolite" in text.getvalue(), words
print(*sys.modules)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory with random weights."""
    keras.utils.set_random_seed(3)
    return str(checkpoint.save(tmp_path_factory.mktemp("runs") / "run", CausalLM(TINY), tokenizer()))


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory):
    return str(write_dialogues(tmp_path_factory.mktemp("data") / "some.jsonl", conversations()[:8]))


def smolite(capsys, *words):
    """Exit status, output, and errors of a command."""
    status = cli.main(list(map(str, words)))
    return status, *capsys.readouterr()


def test_help_loads_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", HELP_OF_ALL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split()) & {"keras", "numpy", "sentencepiece", "tensorflow", "jax", "torch", "smolite.cli.verbs"}


def test_verbs_of_text_need_no_keras(tmp_path):
    """As where Keras cannot be imported."""
    code = "import sys; sys.modules['keras'] = None; from smolite.cli.parser import main; sys.exit(main(sys.argv[1:]))"
    made = str(tmp_path / "t.model")
    train = ["tokenizer", "sample-heldout", "--vocab-size", "900", "--out", made]
    for words, said in ((train, "900 pieces from"), (["data", "show", "sample-heldout", "--tokenizer", made], "86  kept")):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
        assert done.returncode == 0 and said in done.stdout, done.stderr


def test_version(capsys):
    status, out, _ = smolite(capsys, "--version")
    assert status == 0 and re.fullmatch(r"smolite \d+\.\d+\.\d+\n", out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["finetune", "--dataset", "missing.jsonl", "--out", "r"], "smolite finetune: The data set must be an existing file"),
        (["finetune", "--dataset", "sample", "--out", "r", "--epochs", "0"], "`epochs` must be a whole number, 1 or more"),
        (["finetune", "--dataset", "sample", "--out", "r", "--resume"], "There is no interrupted run to resume"),
        (["chat", "no-run"], "smolite chat: A run directory must exist. Received: no-run."),
        (["evaluate", "no-run", "sample"], "A run directory must exist"),
        (["data", "show", "no.jsonl"], "smolite data: The data set must be an existing file"),
        (["tokenizer", "bad.jsonl"], "bad.jsonl must hold text or dialogues.\nAs text: bad.jsonl:1: `text` must be a string"),
        (["tokenizer", "bad.jsonl"], "\nAs dialogues: bad.jsonl:1: turn 1: `from` must be one of system, human"),
        (["verify", "no-run"], "smolite verify: "),
    ],
)
def test_an_error_is_a_sentence_and_not_a_traceback(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    Path("bad.jsonl").write_text('{"conversations": [{"from": "robot", "value": "안녕"}]}\n', encoding="utf-8")
    status, out, errors = smolite(capsys, *words)
    assert (status, out) == (1, "") and message in errors and "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]


def test_broken_numbers_and_interrupts_end_quietly(capsys, monkeypatch):
    def fails(error):
        def verb(**_):
            raise error

        return verb

    monkeypatch.setattr(verbs, "demo", fails(FloatingPointError("Logits must be numbers.")))
    assert smolite(capsys, "demo") == (1, "", "smolite demo: Logits must be numbers.\n")
    monkeypatch.setattr(verbs, "demo", fails(KeyboardInterrupt()))
    assert smolite(capsys, "demo") == (130, "", "\nsmolite demo: interrupted\n")


def test_what_the_terminal_cannot_show_ends_nothing(monkeypatch, tmp_path):
    """As on Korean Windows, whose CP949 has no emoji, when the output goes to a file."""
    turns = (Message("user", "비 그쳤어? 😀"), Message("assistant", "응, 나가자!"))
    path, written = write_dialogues(tmp_path / "one.jsonl", [Conversation(turns)]), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp949"))
    assert cli.main(["data", "show", str(path)]) == 0
    sys.stdout.flush()
    assert re.search(r"그쳤어 \? .*\? <sep>", written.getvalue().decode("cp949"))


def test_a_missing_backend_says_what_to_install():
    code = "import sys; sys.modules['torch'] = None; from smolite.cli.parser import main; sys.exit(main(['chat', 'run']))"
    environment = {**os.environ, "KERAS_BACKEND": "torch", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "pip install 'smolite[torch]'" in done.stderr and "Traceback" not in done.stderr


def test_evaluate_prints_what_the_library_says(capsys, run, dialogues):
    loaded = checkpoint.load(run)
    expected = evaluate(loaded.model, conversations()[:8], tokenizer=loaded.tokenizer).summary()
    status, out, errors = smolite(capsys, "evaluate", run, dialogues)
    assert (status, errors) == (0, "") and out.endswith(f"\n{expected}\n")
    assert re.search(r"8  kept\n(\d whole)?(, )?(\d shortened)?(, )?(\d dropped)? in 64 tokens\n", out), out


def test_bench_prints_a_line_for_each_engine(capsys, run):
    status, out, _ = smolite(capsys, "bench", run, "--repeats", 2, "--tokens", 4)
    assert status == 0 and re.search(r"of 2; prompt 32, decoded 4\nkeras +[\d,]+ \([\d,]+–[\d,]+\) +[\d,]+ \(", out)
    status, _, errors = smolite(capsys, "bench", run, "--repeats", 0)
    assert status == 1 and "`repeats` and `tokens` must be at least 1. Received: 0 and 64" in errors


def test_tokenizer_takes_text_and_dialogues(capsys, tmp_path, dialogues):
    text = tmp_path / "text.txt"
    text.write_text("오늘은 비가 온다\n내일은 맑다\n", encoding="utf-8")
    words = ["tokenizer", dialogues, text, "--out", tmp_path / "t.model", "--vocab-size", 420]
    status, out, _ = smolite(capsys, *words)
    assert status == 0 and re.search(r"t.model: 420 pieces from \d+ characters, \d\.\d\d characters a token", out)
    assert Tokenizer(tmp_path / "t.model").vocab_size == 420
    status, _, errors = smolite(capsys, *words)
    assert status == 1 and "`path` must be free. Received: " in errors
    assert smolite(capsys, *words, "--overwrite")[0] == 0


def test_data_show_marks_the_trained_tokens(capsys, tmp_path, dialogues):
    tokenizer().save(tmp_path / "t.model")
    for words in ([], ["--tokenizer", tmp_path / "t.model"]):
        status, out, _ = smolite(capsys, "data", "show", dialogues, "--count", 2, *words)
        assert status == 0 and out.count("some.jsonl:") == 2
        assert re.search(r"<sep> \[▁.* <end>\]", out) and re.search(r"tokens are trained \(\d+\.\d%\), in 8 dialogues", out)


def test_a_model_is_trained_from_the_command_line(capsys, tmp_path, monkeypatch, dialogues):
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    out = tmp_path / "trained"
    words = "--preset tiny --validation sample-heldout --epochs 1 --batch-size 4".split()
    words += "--sequence-length 48 --steps-per-epoch 2".split()
    status, printed, errors = smolite(capsys, "finetune", "--dataset", dialogues, "--out", out, *words, "--dropout", 0.2)
    assert (status, errors) == (0, "")
    assert re.search(rf"{out}: epoch 1 kept \(.*val_bits_per_character \d.*\)\nTalk with it: smolite chat {out}\n", printed)
    recipe = checkpoint.load(out).recipe
    given = {"epochs": 1, "batch_size": 4, "sequence_length": 48, "steps_per_epoch": 2, "dropout": 0.2}
    assert recipe["options"] == {**TrainingOptions().to_dict(), **given} and recipe["dataset"] == dialogues
    status, _, errors = smolite(capsys, "finetune", "--dataset", dialogues, "--out", out, *words)
    assert status == 1 and "trained exists already. Choose another name, or allow overwriting it." in errors


def test_a_recipe_gives_the_options_that_no_flag_gives(monkeypatch):
    received = {}
    monkeypatch.setattr(verbs, "pretrain", lambda **given: received.update(given))
    words = ["pretrain", "--dataset", "a", "--out", "b", "--batch-size", "16", "--recipe", "smollm2", "--beta-2", "0.98"]
    assert cli.main(words) == 0
    options = TrainingOptions.from_recipe("smollm2", batch_size=16, beta_2=0.98).to_dict()
    assert options.items() <= received.items() and "recipe" not in received


@pytest.mark.slow
def test_quantize_writes_a_run_that_chats(capsys, run, tmp_path):
    status, out, _ = smolite(capsys, "quantize", run, "--bits", 4, "--out", tmp_path / "small")
    size = (tmp_path / "small/model_int4.safetensors").stat().st_size
    assert status == 0 and f"{size / 1e6:.4g} MB of weights" in out
    assert checkpoint.load(tmp_path / "small").recipe["quantized"] == {"run": run, "bits": 4}
    assert smolite(capsys, "chat", tmp_path / "small", "--prompt", "안녕", "--max-new-tokens", 3)[0] == 0
    status, _, error = smolite(capsys, "quantize", run, "--out", tmp_path / "small")
    assert status == 1 and "must be a new directory" in error
    assert smolite(capsys, "export", tmp_path / "small", "--format", "gguf")[0] == 0
    manifest = json.loads((tmp_path / "small/export/MANIFEST.json").read_text("utf-8"))
    assert set(manifest["artifacts"]["model.gguf"]["made_from"]) == {"config.json", "model_int4.safetensors"}


@pytest.mark.parametrize("kind", ["preset", "run"])
def test_params_prints_a_table(capsys, run, kind):
    status, out, _ = smolite(capsys, "params", "smollm2-135m" if kind == "preset" else run)
    count = 134_515_008 if kind == "preset" else TINY.num_parameters
    assert status == 0 and out.rstrip().endswith(f"| in all |  |  |  | {count:,} | 100.0% |")
