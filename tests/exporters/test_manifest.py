"""`MANIFEST.json`, planted faults that only it or a closer look finds, and exports that are killed or run out of disk."""

import hashlib
import json
import shutil
import signal
import subprocess

import flatbuffers
import pytest
from exported import exported_run, run_apart, save_small_run

from smolite.checkpoint import run as checkpoint
from smolite.exporters.delivery.manifest import manifest_problems, read_manifest, sha256_of, write_manifest
from smolite.exporters.delivery.placement import move_files, staging_folder
from smolite.exporters.delivery.report import Row
from smolite.exporters.litert.flatbuffer import read_flatbuffer
from smolite.exporters.request import ExportRequest
from smolite.exporters.verification.verification import verify
from smolite.serving.open import open_engine

QUICK = {"prompts": ["안녕하세요", [5], [7] * 9], "max_new_tokens": 6}
ASKED = {"format": "tflite", "quantize": None, "prefill_lengths": (4, 16), "cache_length": 48, "windows": (), "drafts": 0}


@pytest.fixture
def copy(tmp_path, tmp_path_factory):
    """A run directory with the float32 file, what clients need beside it, and a manifest."""
    run = exported_run(tmp_path_factory)
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("export"))
    folder = tmp_path / "run" / "export"
    folder.mkdir()
    for name in ("model.tflite", "tokenizer.model", "chat.json"):
        shutil.copy(run / "export" / name, folder)
    row = Row(artifact="model.tflite", runtime="LiteRT", logits=1e-6)
    request = ExportRequest(run=tmp_path / "run", path=folder / "model.tflite", **ASKED)
    write_manifest(folder, folder, row=row, request=request)
    return tmp_path / "run"


def problems(report):
    return {row.artifact: " ".join(row.problems) for row in report.rows if row.problems}


def test_a_manifest_says_what_a_file_is_and_was_made_from(copy):
    entry = json.loads((copy / "export" / "MANIFEST.json").read_text("utf-8"))["artifacts"]["model.tflite"]
    data = (copy / "export" / "model.tflite").read_bytes()
    assert entry["sha256"] == hashlib.sha256(data).hexdigest() and entry["bytes"] == len(data)
    assert {key: entry[key] for key in ASKED} == {**ASKED, "prefill_lengths": [4, 16], "windows": []}
    assert set(entry["made_from"]) == {"config.json", "model.safetensors"} and entry["verified"]["logits"] == 1e-6
    assert "smolite" in entry["versions"] and not any(manifest_problems(copy / "export", copy).values())


def test_the_hash_of_a_folder_is_that_of_its_list(tmp_path):
    for name in ("b/a.txt", "b/c/d", "a-b", "z"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    command = "find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert sha256_of(tmp_path) == done.stdout.split()[0]


def test_a_manifest_that_is_none(copy):
    (copy / "export" / "MANIFEST.json").write_text("[]")
    with pytest.raises(ValueError, match=r"A manifest of form 1 was expected. Received: .*Delete it, and export again."):
        read_manifest(copy / "export")


@pytest.mark.slow
def test_a_changed_byte_is_found(copy):
    file = copy / "export" / "tokenizer.model"
    file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1]))
    assert "its bytes are not those that were exported" in problems(verify(copy, **QUICK))["tokenizer.model"]


@pytest.mark.slow
def test_an_old_file_after_new_weights_is_found(copy):
    loaded = checkpoint.load(copy)
    loaded.model.final_norm.scale.assign(loaded.model.final_norm.scale * (1 + 1e-6))  # too little for any other check
    checkpoint.save(copy, loaded.model, loaded.tokenizer, template=loaded.template, overwrite=True)
    assert problems(verify(copy, **QUICK)) == {
        "model.tflite": "it is stale: model.safetensors of the run changed after it was made; export it again"
    }


def test_an_old_file_after_new_weights_does_not_talk(copy):
    assert open_engine(checkpoint.load(copy), "model.tflite").vocab_size == 330
    loaded = checkpoint.load(copy)
    loaded.model.final_norm.scale.assign(loaded.model.final_norm.scale * 2)
    checkpoint.save(copy, loaded.model, loaded.tokenizer, template=loaded.template, overwrite=True)
    with pytest.raises(ValueError, match=r"model.tflite, made before model.safetensors changed. Make it again with `smolite"):
        open_engine(checkpoint.load(copy), "model.tflite")


@pytest.mark.slow
def test_a_file_that_is_gone_is_found(copy):
    (copy / "export" / "chat.json").unlink()
    assert problems(verify(copy, **QUICK)) == {"MANIFEST.json": "chat.json is not there"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "said"), [("stop_ids", "its answers end with [5]"), ("opening", "prompts have other ids, for example of")]
)
def test_wrong_ids_for_a_client_are_found(copy, key, said):
    file = copy / "export" / "chat.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), key: [5]}))
    assert said in problems(verify(copy, **QUICK))["chat.json"]


@pytest.mark.slow
def test_a_stale_cache_is_found(copy):
    """`decode` gives back the caches that it was given."""
    file = copy / "export" / "model.tflite"
    model = read_flatbuffer(file.read_bytes())
    decode = next(each for each in model.signatureDefs if each.signatureKey == b"decode")
    given = {each.name: each.tensorIndex for each in decode.inputs}
    graph = model.subgraphs[decode.subgraphIndex]
    graph.outputs = graph.outputs.copy()
    for output in decode.outputs:
        if output.name.startswith(b"kv_cache"):
            graph.outputs[list(graph.outputs).index(output.tensorIndex)] = given[output.name]
            output.tensorIndex = given[output.name]
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    file.write_bytes(bytes(builder.Output()))
    assert "a cache value differs by" in problems(verify(copy, **QUICK))["model.tflite"]


@pytest.mark.slow
def test_memory_and_times_are_measured_in_a_process_of_its_own(copy):
    row = {row.artifact: row for row in verify(copy, **QUICK, measure=True).rows}["model.tflite"]
    assert row.passed and 0 < row.open_seconds < 60 and 0 < row.first_token_seconds < 60
    assert row.peak_bytes is None or 1e5 < row.peak_bytes < 1e9
    page = (copy / "export" / "verify.md").read_text("utf-8")
    assert "Every file says what the model says." in page and "| model.tflite | LiteRT |" in page


KILLED = """
import os, signal, sys
from pathlib import Path
from smolite.exporters.delivery.placement import move_files, staging_folder

move = Path.replace
def replace(self, target):
    if self.name == "b" and self.parent.name.startswith(".unfinished-"):
        print("killed", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return move(self, target)
Path.replace = replace
with staging_folder(Path(sys.argv[1])) as staging:
    for name in "abc":
        (staging / name).write_text("new")
    move_files(staging, Path(sys.argv[1]), last="c")
"""


def test_an_export_that_is_killed_while_it_moves_files_leaves_the_old_ones(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "c").write_text("old")
    with pytest.raises(AssertionError):
        run_apart(KILLED, tmp_path)
    assert (tmp_path / "a").read_text() == "new" and not (tmp_path / "b").exists()  # it stopped between two files
    with staging_folder(tmp_path) as staging:
        assert sorted(entry.name for entry in tmp_path.iterdir() if entry != staging) == ["a", "c"]
        assert (tmp_path / "a").read_text() == (tmp_path / "c").read_text() == "old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "c"]


def test_files_and_folders_are_moved_over_old_ones(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")
    with staging_folder(tmp_path) as staging:
        (staging / "model").mkdir()
        (staging / "model" / "new").write_text("new")
        (staging / "last").write_text("new")
        move_files(staging, tmp_path, last="last")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["last", "model", "model/new"]


FULL = """
import resource, signal, sys
from smolite.exporters.exporting import export

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    export(sys.argv[1], format="gguf", overwrite=True)
except OSError as error:
    print(repr(error))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="a limit of the size of files is Unix's")
def test_a_disk_that_is_full_leaves_the_old_file(tmp_path):
    run = save_small_run(tmp_path)
    (run / "export").mkdir()
    (run / "export" / "model.gguf").write_bytes(b"the old file")
    assert run_apart(FULL, run).splitlines()[-1].startswith("OSError(")
    assert [entry.name for entry in (run / "export").iterdir()] == ["model.gguf"]
    assert (run / "export" / "model.gguf").read_bytes() == b"the old file"
