"""A kind of file that is one folder, `npz_target`, and one row: everything works with it. Referee: the numpy reference."""

import json
from pathlib import Path

import numpy as np
import pytest
from exported import save_small_run

from smolite import export, plan, verify
from smolite.checkpoint import run as checkpoint
from smolite.cli import parser as cli
from smolite.exporters import targets
from smolite.exporters.request import ExportRequest, checked_request
from smolite.exporters.targets import TARGETS
from smolite.serving.open import engine_names, open_engine


@pytest.fixture(autouse=True)
def row(monkeypatch):
    """All that tells smolite of the folder."""
    monkeypatch.setattr(targets, "MODULES", (*targets.MODULES, "npz_target.target"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_small_run(tmp_path_factory.mktemp("npz"))


@pytest.fixture
def exported(run, tmp_path):
    export(run, format="npz", out=tmp_path / "out")
    return tmp_path / "out"


def test_a_file_is_made_verified_described_and_chatted_with(run, capfd):
    path = export(run, format="npz")
    report = json.loads((path.parent / "verify.json").read_text("utf-8"))
    rows = {entry["artifact"]: entry for entry in report["rows"]}
    assert report["passed"] and {"model.npz", "shapes in model.npz", "tokenizer.model", "chat.json"} <= set(rows)
    assert rows["model.npz"]["logits"] < 1e-4 and rows["model.npz"]["tokens"] == rows["model.npz"]["num_tokens"] > 100
    entry = json.loads((path.parent / "MANIFEST.json").read_text("utf-8"))["artifacts"]["model.npz"]
    assert (entry["format"], entry["quantize"], entry["cache_length"], "windows" in entry) == ("npz", None, None, False)
    loaded = checkpoint.load(run)
    assert engine_names(loaded) == ["keras", "model.npz"] and open_engine(loaded, "model.npz").context_length == 64

    capfd.readouterr()
    answers = []
    for engine in ("npz", "keras"):
        words = ["chat", str(run), "--engine", engine, "--prompt", "abc", "--temperature", "0", "--max-new-tokens", "8"]
        assert cli.main(words) == 0
        answers.append(capfd.readouterr().out)
    assert answers[0] == answers[1] != "\n"


def test_the_command_line_offers_it_and_quantizes(run, tmp_path, capfd):
    choices = {name: action.choices for verb in ("export", "chat") for name, action in cli.parser_of(verb).settings.items()}
    assert choices["format"][-1] == "npz" and choices["quantize"][-1] == "half" and choices["engine"][-2:] == ["npz", "half"]
    assert cli.main(["export", str(run), "--format", "npz", "--quantize", "half", "--out", str(tmp_path)]) == 0
    rows = {entry["artifact"]: entry for entry in json.loads((tmp_path / "verify.json").read_text("utf-8"))["rows"]}
    assert 0 < rows["model_half.npz"]["logits"] < 0.1 and rows["model_half.npz"]["bits_per_character"] is not None
    assert cli.main(["export", str(run), "--format", "npz", "--windows", "8", "--out", str(tmp_path)]) == 1
    assert "npz has no windows. Received: `windows` (8,). Leave them out." in capfd.readouterr().err


def test_a_plan_knows_its_size(run):
    made, weights = plan(run), checkpoint.load_model(run).count_params()
    assert made.file("model.npz").num_bytes == 4 * weights == 2 * made.file("model_half.npz").num_bytes


def test_verification_sees_a_fault(run, exported):
    with np.load(exported / "model.npz") as file:
        content = dict(file)
    content["model.norm.weight"] = content["model.norm.weight"] * np.float32(1.01)
    np.savez(exported / "model.npz", **content)
    problems = " ".join(problem for row in verify(run, out=exported, max_new_tokens=4).rows for problem in row.problems)
    assert "a logit differs by" in problems and "its bytes are not those that were exported" in problems


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"cache_length": 16}, "npz has no fixed lengths. Received: `prefill_lengths` or `cache_length`"),
        ({"prefill_lengths": [8]}, "npz has no fixed lengths"),
        ({"drafts": 2}, "npz has no drafts. Received: `drafts` 2. Leave it out."),
        ({"growing_cache": True}, "npz has no growing cache.*Leave it out, or export to litertlm."),
        ({"quantize": "int8"}, "`quantize` for npz must be one of: None, half. Received: 'int8'."),
    ],
)
def test_what_its_row_has_no_place_for_is_refused(run, tmp_path, asked, sentence):
    with pytest.raises(ValueError, match=sentence):
        export(run, format="npz", out=tmp_path, **asked)
    assert not list(tmp_path.iterdir())


def test_what_its_own_folder_refuses(tmp_path, run):
    config = checkpoint.load_config(run)
    learned = type(config).from_dict(config.to_dict() | {"positions": "learned"})
    with pytest.raises(ValueError, match="A .npz file holds Llamas only."):
        checked_request(TARGETS["npz"], learned, run=run, path=tmp_path / "model.npz")
    assert plan(learned).file("model.npz").problem == "A .npz file holds Llamas only."


def test_a_request_goes_to_another_process_and_back(run, tmp_path):
    config = checkpoint.load_config(run)
    known = {"run": run, "path": tmp_path / "model.tflite", "windows": [8], "drafts": 3, "prefill_lengths": [16, 4]}
    request = checked_request(TARGETS["tflite"], config, cache_length=48, **known)
    assert request.prefill_lengths == (4, 16) and request.windows == (8,)
    assert ExportRequest.from_json(request.to_json()) == request
    growing = checked_request(TARGETS["litertlm"], config, run=Path("r"), path=Path("m"), cache_length=48, growing_cache=True)
    assert (growing.growing_cache, growing.prefill_lengths, growing.slots) == (True, (), 48)
    assert growing.described()["prefill_lengths"] is None and "drafts" not in growing.described()
