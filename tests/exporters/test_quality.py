"""The ladder of ways to quantize: its figures against the Keras model's, and the file that it keeps."""

import dataclasses
import json

import numpy as np
import pytest
from exported import exported_run, keras_logits, small_config

from smolite.checkpoint import run as checkpoint
from smolite.cli import parser as cli
from smolite.data.dialogues import read_conversations
from smolite.evaluation.likelihood import evaluate
from smolite.exporters.litert.ways import WAYS
from smolite.exporters.quality import ladder as quality
from smolite.exporters.quality.agreement import Comparison, measure, read_sample, same_at_the_start
from smolite.exporters.quality.ladder import FLOAT, Quality, Row, choose, measure_ways, smallest
from smolite.generation.keras_engine import KerasEngine
from smolite.generation.loop import generate
from smolite.models.seq2seq_lm import Seq2SeqLM

SPOKEN = '{{"conversations": [{{"from": "human", "value": "{}"}}, {{"from": "gpt", "value": "{}"}}]}}\n'
TEXT = "오늘 점심 뭐 먹을까?\n나는 학생이에요\na\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return checkpoint.load(exported_run(tmp_path_factory))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heldout")
    (folder / "spoken.jsonl").write_text(SPOKEN.format("안녕", "반가워요") + SPOKEN.format("뭐 해?", "먹어요 abc"), "utf-8")
    (folder / "written.txt").write_text(TEXT, "utf-8")
    return {"dialogues": folder / "spoken.jsonl", "text": folder / "written.txt"}


def read(run, files, **settings):
    return read_sample(run, **files, **{"count": 9, "slots": 48, **settings})


def row(way, num_bytes, *changes, problems=()):
    answers, text = (Comparison(bits=1 + change, change=change, agreement=0.9) for change in changes)
    return Row(way=way, num_bytes=num_bytes, answers=answers, text=text, greedy_tokens=3.0, problems=problems)


ROWS = [row(FLOAT, 40, 0.0, 0.0), row("int8", 10, 0.004, -0.01), row("int4_int8", 6, 0.01, 0.03), row("int4", 5, 0.2, 0.1)]


@pytest.mark.parametrize(
    ("max_loss", "way"), [(0.0, FLOAT), (0.004, "int8"), (0.029, "int8"), (0.03, "int4_int8"), (0.5, "int4")]
)
def test_the_smallest_file_within_the_loss_is_chosen(max_loss, way):
    assert choose(ROWS, max_loss).way == way


def test_a_file_with_a_problem_is_not_chosen():
    assert choose([ROWS[0], row("int4", 5, 0.0, 0.0, problems=("2 embedding tables",))], 0.5).way == FLOAT


def test_without_dialogues_the_text_decides():
    assert dataclasses.replace(ROWS[2], answers=None).loss == 0.03


def test_ids_before_the_first_difference():
    assert same_at_the_start([5, 6, 7], [5, 6, 9]) == 2
    assert [same_at_the_start([5], [5, 6]), same_at_the_start([], [5]), same_at_the_start([5, 6], [5, 6])] == [1, 0, 2]


def test_what_is_measured_on(run, files):
    sample, pieces = read(run, files), run.tokenizer
    assert [ids for ids, *_ in sample.texts] == [[*pieces.encode(line), 3] for line in TEXT.splitlines()]
    firsts = [pieces.decode(ids[:1]) for ids, *_ in sample.texts]  # which nothing predicts
    assert sample.text_characters == len(TEXT) - sum(map(len, firsts)) and all(
        mask == [0, *[1] * (len(ids) - 1)] for ids, mask, _ in sample.texts
    )
    assert sample.dialogue_characters == len("반가워요") + len("먹어요 abc") + 2
    assert all(ids[-1] == 4 for ids in sample.prompts) and sample.stop_id == 3
    assert len(read(run, files, count=1).texts) == len(read(run, files, count=1).dialogues) == 1
    with pytest.raises(
        ValueError, match=r"A text of 1 to 1 tokens was expected. Received: none in .*written.txt. Choose another"
    ):
        read(run, files, slots=2)


def test_a_run_without_a_template_is_measured_on_text(run, files):
    sample = read(run.replace(template=None), files)
    assert not sample.dialogues and [len(ids) for ids in sample.prompts] == [len(ids) // 2 for ids, *_ in sample.texts]
    assert measure(KerasEngine(run.model), sample).dialogues is None


@pytest.fixture(scope="module")
def rows(run, files):
    ways = ["int8", "int4"]
    whole = run.path / "export" / "model.tflite"
    return {row.way: row for row in measure_ways(whole, ways, read(run, files), config=run.model.config)}


def test_the_first_row_has_the_figures_of_the_keras_model(run, files, rows):
    conversations = read_conversations(files["dialogues"]).conversations
    expected = evaluate(run.model, conversations, tokenizer=run.tokenizer, template=run.template)
    assert rows[FLOAT].answers.bits == pytest.approx(expected.bits_per_character, rel=1e-4)
    nll, sample = 0.0, read(run, files)
    for ids, *_ in sample.texts:
        logits = keras_logits(run.model, ids).astype("float64")
        chances = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        nll -= sum(chances[place, index] for place, index in enumerate(ids[1:]))
    assert rows[FLOAT].text.bits == pytest.approx(nll / np.log(2) / sample.text_characters, rel=1e-4)
    assert rows[FLOAT].loss == 0 and rows[FLOAT].text.agreement == rows[FLOAT].answers.agreement == 1


def test_the_greedy_answers_of_the_first_row_are_whole(run, files, rows):
    prompts = read(run, files).prompts
    replies = generate(KerasEngine(run.model, context_length=48), prompts, max_new_tokens=64, stop_ids=[3])
    assert rows[FLOAT].greedy_tokens == np.mean([min(len(reply) + 1, 64) for reply in replies])


def test_fewer_bits_agree_less(rows):
    assert list(rows) == [FLOAT, "int8", "int4"]
    assert 0 < abs(rows["int8"].loss) < abs(rows["int4"].loss) < 0.1
    assert 1 >= rows["int8"].text.agreement > rows["int4"].text.agreement > 0.3
    assert rows[FLOAT].greedy_tokens >= rows["int8"].greedy_tokens >= rows["int4"].greedy_tokens
    assert rows[FLOAT].num_bytes > rows["int8"].num_bytes > rows["int4"].num_bytes
    assert not any(row.problems for row in rows.values())


def test_the_report_is_a_table_and_json(tmp_path):
    conditions = {"dialogues": 7, "greedy_answers": 2}
    quality = Quality(rows=ROWS, max_loss=0.01, chosen="int8", path=tmp_path / "model_int8.tflite", conditions=conditions)
    quality.save(tmp_path)
    stored = json.loads((tmp_path / "quality.json").read_text("utf-8"))
    assert stored["chosen"] == "int8" and stored["file"] == "model_int8.tflite" and stored["dialogues"] == 7
    assert [each["loss"] for each in stored["rows"]] == [0, 0.004, 0.03, 0.2]
    text = (tmp_path / "quality.md").read_text("utf-8")
    assert "costs at most 1.00% more bits" in text and "Measured on: dialogues 7, greedy answers 2." in text
    lines = quality.table().splitlines()
    assert len({len(line) for line in lines}) == 1 and quality.table() in text
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == [
        *("int8", "0.00 MB", "1.0040 (+0.40%)", "90.0%", "0.9900 (-1.00%)", "90.0%", "3.0", "kept")
    ]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"max_loss": 1.0}, ValueError, "`max_loss` must be from 0 to below 1, .* Received: 1.0 and 100. 0.01 is 1 %."),
        ({"max_loss": float("nan")}, ValueError, "`max_loss` must be from 0 to below 1"),
        ({"count": 0}, ValueError, "and `count` at least 1. Received: 0.01 and 0."),
        ({}, FileExistsError, "The output must not exist yet. Received: .*model.tflite. Choose another `out`, or give"),
        ({"cache_length": 65, "out": "elsewhere"}, ValueError, "`cache_length` must be from 2 to the context length"),
    ],
)
def test_settings_that_are_refused_before_any_work(run, settings, error, message):
    with pytest.raises(error, match=message):
        smallest(run.path, **settings)


def test_an_encoder_decoder_is_refused(run, tmp_path):
    config = dataclasses.replace(small_config(330), num_encoder_layers=1)
    path = checkpoint.save(tmp_path / "pair", Seq2SeqLM(config), run.tokenizer)
    with pytest.raises(ValueError, match="A model without an encoder was expected. Received: .*pair. Export it, and see"):
        smallest(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("max_loss", "way", "ways"), [("0", None, ["int8"]), pytest.param("50%", "int4", list(WAYS), marks=pytest.mark.long)]
)
def test_the_verb_keeps_the_file_that_was_chosen(run, files, tmp_path, capsys, monkeypatch, max_loss, way, ways):
    monkeypatch.setattr(quality, "WAYS", {each: WAYS[each] for each in ways})
    words = ["quality", str(run.path), "--max-loss", max_loss, "--dataset", str(files["dialogues"]), "--out", str(tmp_path)]
    lengths = ["--prefill-lengths", "16", "--cache-length", "48"]
    assert cli.main([*words, "--text", str(files["text"]), *lengths]) == 0
    name = f"model_{way}.tflite" if way else "model.tflite"
    kept = {file.name for file in tmp_path.iterdir()}
    assert {file for file in kept if file.endswith(".tflite")} == {name}
    assert {"quality.json", "quality.md", "tokenizer.model", "chat.json", "verify.json"} < kept
    stored = json.loads((tmp_path / "quality.json").read_text("utf-8"))
    assert [each["way"] for each in stored["rows"]] == [FLOAT, *(each for each in ways if "block" not in each)]
    assert stored["file"] == name and str(tmp_path / name) in capsys.readouterr().out
