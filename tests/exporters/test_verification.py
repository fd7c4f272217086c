import json
import shutil
import sys

import flatbuffers
import numpy as np
import pytest
from exported import exported_run, save_small_run

from smolite.checkpoint import run as checkpoint
from smolite.exporters.delivery.report import Report, Row
from smolite.exporters.litert.flatbuffer import read_flatbuffer
from smolite.exporters.verification.reference import Case, _cache_difference
from smolite.exporters.verification.verification import verify

QUICK = {"prompts": ["안녕하세요", [5], [7] * 9], "max_new_tokens": 6}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return exported_run(tmp_path_factory)


@pytest.fixture(scope="module")
def report(run, tmp_path_factory):
    turns = [{"from": "human", "value": "안녕"}, {"from": "gpt", "value": "반가워"}]
    dialogues = tmp_path_factory.mktemp("dialogues") / "short.jsonl"
    dialogues.write_text(json.dumps({"conversations": turns}), "utf-8")
    return verify(run, dialogues=dialogues, max_new_tokens=20)


@pytest.fixture
def copy(run, tmp_path):
    """A run directory whose export folder holds only the float32 file, to be damaged."""
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("export"))
    (tmp_path / "run" / "export").mkdir()
    for name in ("model.tflite", "tokenizer.model"):
        shutil.copy(run / "export" / name, tmp_path / "run" / "export")
    return tmp_path / "run"


def problems(report):
    return {row.artifact: row.problems for row in report.rows if row.problems}


def test_every_artifact_passes(report):
    rows = {row.artifact: row for row in report.rows}
    assert list(rows) == ["Keras model", "saved_model", "model.tflite", "model_int8.tflite", "tokenizer.model", "chat.json"]
    assert report.passed and not problems(report)
    for name in ("Keras model", "saved_model", "model.tflite"):
        assert rows[name].logits < 1e-5 and rows[name].tokens == rows[name].num_tokens > 150
    int8, keras = rows["model_int8.tflite"], rows["Keras model"]
    assert 1e-4 < int8.logits < 0.1 and abs(int8.bits_per_character / keras.bits_per_character - 1) < 0.01
    assert int8.num_bytes < rows["model.tflite"].num_bytes


def test_the_report_is_a_table_and_a_file(run, report):
    table = report.table().splitlines()
    assert len(table) == 7 and table[0].startswith("artifact") and all(line.endswith("pass") for line in table[1:])
    saved = json.loads((run / "export" / "verify.json").read_text("utf-8"))
    assert saved["passed"] and [row["artifact"] for row in saved["rows"]] == [row.artifact for row in report.rows]
    assert saved["conditions"]["prompt_lengths"][-7:] == [1, 2, 4, 5, 16, 17, 46]


def test_a_wrong_theta_is_found(copy):
    config = json.loads((copy / "config.json").read_text("utf-8"))
    (copy / "config.json").write_text(json.dumps({**config, "rope_theta": 1e4}), "utf-8")
    report = verify(copy, **QUICK)
    assert not report.passed and list(problems(report)) == ["model.tflite"]
    assert "a cache value differs by" in " ".join(problems(report)["model.tflite"])
    assert "FAIL" in report.table()


def test_swapped_heads_are_found(copy):
    loaded = checkpoint.load(copy)
    kernel = loaded.model.blocks[0].attention.query.kernel
    columns = np.arange(72).reshape(6, 12)[[1, 0, 2, 3, 4, 5]].ravel()
    kernel.assign(np.array(kernel)[:, columns])
    checkpoint.save(copy, loaded.model, loaded.tokenizer, overwrite=True)
    assert "a logit differs by" in " ".join(problems(verify(copy, **QUICK))["model.tflite"])


def test_the_file_of_another_model_is_found(copy, tmp_path):
    other = save_small_run(tmp_path / "other", seed=1)
    shutil.copytree(copy / "export", other / "export")
    found = " ".join(problems(verify(other, **QUICK))["model.tflite"])
    assert "greedy tokens are the same; at least" in found


@pytest.mark.slow
def test_a_quantized_file_of_another_vocabulary_is_a_row_and_no_error(copy, run, tmp_path):
    other = save_small_run(tmp_path / "other", seed=1, vocab_size=320)
    shutil.copytree(copy / "export", other / "export")
    shutil.copy(run / "export" / "model_int8.tflite", other / "export")
    found = problems(verify(other, **QUICK))
    assert found["model.tflite"][0] == found["model_int8.tflite"][0] == "it has 330 tokens, the model 320"


@pytest.mark.slow
def test_a_file_whose_runtime_is_missing_is_a_row_and_no_error(copy, monkeypatch):
    (copy / "export" / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "cyllama.llama", None)
    found = problems(verify(copy, **QUICK))
    assert found == {"model.gguf": ['it runs on llama.cpp. Run: pip install "smolite[gguf]"']}


def test_a_second_table_is_found(copy):
    file = copy / "export" / "model.tflite"
    model = read_flatbuffer(file.read_bytes())
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors if tensor.shape is not None]
    tables = [tensor for tensor in tensors if list(tensor.shape) == [330, 40]]
    model.buffers.append(model.buffers[tables[0].buffer])
    tables[-1].buffer = len(model.buffers) - 1
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    file.write_bytes(bytes(builder.Output()))
    assert problems(verify(copy, **QUICK)) == {"model.tflite": ["2 embedding tables"]}


def test_a_file_that_was_cut_off_is_found(copy):
    file = copy / "export" / "model.tflite"
    file.write_bytes(file.read_bytes()[:5000])
    report = verify(copy, **QUICK)
    assert problems(report)["model.tflite"][0].startswith("LiteRT refuses it: A whole .tflite file was expected")
    assert not report.passed


def test_another_tokenizer_is_found(copy, tmp_path):
    from smolite.text.tokenizer import train_tokenizer

    train_tokenizer(["가나다라 마바사", "아자차카"], tmp_path / "other.model", vocab_size=290)
    shutil.copy(tmp_path / "other.model", copy / "export" / "tokenizer.model")
    assert "texts have other ids, for example" in problems(verify(copy, **QUICK))["tokenizer.model"][0]


def test_nothing_to_verify(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is nothing to verify. Received: .* `smolite export`"):
        verify(tmp_path)


def test_a_table_shows_the_change_of_bits_and_the_problems(tmp_path):
    rows = [
        Row(artifact="Keras model", runtime="Keras", bits_per_character=2.0),
        Row(artifact="a.tflite", runtime="LiteRT", num_bytes=1_500_000, tokens=3, num_tokens=4, bits_per_character=2.05),
    ]
    rows[1].problems.append("something is wrong")
    report = Report(rows=rows, conditions={})
    assert not report.passed
    assert report.table().splitlines()[2:] == [
        "a.tflite     LiteRT   1.50 MB                  3/4            2.0500 (+2.50%)  FAIL",
        "a.tflite: something is wrong",
    ]
    assert json.loads(report.save(tmp_path).read_text("utf-8"))["rows"][1]["problems"] == ["something is wrong"]


@pytest.mark.parametrize(("largest", "share"), [(0.5, 1e-4), (8.0, 1e-4 / 8)])
def test_differences_of_large_keys_are_shares(largest, share):
    """The angle of a late position is rounded, which moves a key by as much as it is long."""
    keys = np.zeros((1, 2, 3, 4), "float32")
    keys[0, 1, 2] = largest

    class Engine:
        def read_caches(self):
            return {"kv_cache_k_0": keys + np.float32(1e-4)}

    case = Case(prompt=[5, 6], reply=[7, 8], logits=None, written=None, caches={"kv_cache_k_0": keys[0]})
    assert _cache_difference(Engine(), case) == pytest.approx(share, rel=0.01)
