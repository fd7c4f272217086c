"""The benchmarks: their figures on paper, what they refuse, and both scripts at a toy size."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from exported import DRAFTS, exported_run, windowed_file

ROOT = Path(__file__).parents[1]
BACKEND = os.environ["KERAS_BACKEND"]


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def run(script, *options):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "benchmarks" / script), *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)


def tables(text):
    """Tables of Markdown as lists of rows of cells, without the rule."""
    blocks = [block.splitlines() for block in text.split("\n\n")]
    rows = [
        [line.strip("|").split("|") for line in block if not line.startswith("| ---")] for block in blocks if "|" in block[0]
    ]
    return [[[cell.strip() for cell in row] for row in table] for table in rows]


def test_figures_of_a_table(modules):
    table = modules("table")
    assert table.middle([2.0, 9.0, 4.0]) == "4.00"
    assert table.spread([2.0, 1234.5, 57.31]) == "2.00–1,234" and table.number(57.31) == "57.3"
    assert table.ratio([6.0, 8.0], [2.0, 4.0]) == "2.33 (2.00–3.00)"
    assert table.markdown(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"
    assert "Python" in table.conditions() and table.cpu_count() >= 1


def test_a_peer_that_is_missing(modules):
    with pytest.raises(SystemExit, match=r"needs no-such-peer.*pip install no-such-peer, or leave them out"):
        modules("peers").check_installed(["no-such-peer"], {"no-such-peer": "no_such_peer"})


@pytest.mark.slow
def test_a_worker_that_stops_is_quoted(modules):
    with pytest.raises(RuntimeError, match=r"(?s)A worker stopped: .*train_sides.py.*KeyError: 'config'"):
        modules("turns").Worker("train_sides.py", {}, backend=BACKEND)


@pytest.mark.parametrize("script", ["train.py", "decode.py"])
def test_a_number_that_must_be_positive(script):
    done = run(script, "--repeats", "0")
    assert done.returncode == 2 and "expected a whole number from 1 on, received '0'" in done.stderr


def test_a_prompt_that_does_not_fit():
    done = run("decode.py", "--prompt", "200", "--tokens", "100")
    assert done.returncode == 2 and "prompt and new tokens must fit into the cache of 256" in done.stderr


@pytest.mark.long
def test_train_prints_a_table_of_dialogues(tmp_path):
    data, out = ROOT / "smolite" / "data" / "sample" / "heldout.jsonl", tmp_path / "table.md"
    options = ("--size", "toy", "--repeats", "1", "--steps", "1", "--dialogues", str(data), "--out", str(out))
    done = run("train.py", "--case", "dialogues", *options, "--backend", BACKEND, "--peers", "keras-hub")
    assert done.returncode == 0, done.stderr
    assert done.stdout == out.read_text("utf-8")
    (dialogues,) = tables(done.stdout)
    assert [row[0] for row in dialogues] == ["side", "smolite", "keras-hub"] and dialogues[0][1] == "response tokens/s"
    assert all(len(row) == 9 and float(row[1].replace(",", "")) > 0 for row in dialogues[1:])


@pytest.mark.long
def test_train_of_pairs_counts_the_tokens_of_targets():
    done = run("train.py", "--size", "toy", "--case", "pairs", "--repeats", "1", "--steps", "1", "--backend", BACKEND)
    assert done.returncode == 0, done.stderr
    (pairs,) = tables(done.stdout)
    transformers = ["transformers"] if BACKEND == "torch" else []
    assert [row[0] for row in pairs] == ["side", "smolite", "keras-hub", *transformers]
    assert pairs[0][1] == "target tokens/s" and [row[5] for row in pairs[1:]] == ["512"] * len(pairs[1:])
    assert "2 and 2 layers" in done.stdout


@pytest.mark.long
def test_a_step_of_several_batches_in_bfloat16_counts_all_of_their_tokens():
    peer = "transformers" if BACKEND == "torch" else "keras-hub"
    batch = ["--peers", peer, *"--rows 2 --length 16 --gradient-accumulation-steps 3 --dtype mixed_bfloat16".split()]
    done = run("train.py", "--size", "toy", "--case", "text", "--repeats", "1", "--steps", "1", *batch, "--backend", BACKEND)
    assert done.returncode == 0, done.stderr
    (text,) = tables(done.stdout)
    assert text[0][1] == "tokens/s" and [row[0] for row in text] == ["side", "smolite", peer]
    assert [row[5] for row in text[1:]] == ["96", "96"]
    assert "`toy`, mixed_bfloat16." in done.stdout and f"### text, {BACKEND}: batch 3 × 2 × 16," in done.stdout


def test_a_prompt_that_does_not_fit_into_the_caches_of_the_edge(tmp_path):
    done = run("edge.py", "--size", "toy", "--work", str(tmp_path), "--prompt", "300", "--tokens", "212")
    assert done.returncode == 2 and "prompt and new tokens must fit into the caches of 512" in done.stderr


def test_operators_of_a_profile(modules):
    step = [("Run", 1, 12), ("PACK", 2, 1), ("Fully Connected", 8, 4), ("Fully Connected", 8, 2), ("Delegate", 32, 99)]
    slower = [("Run", 1, 20), ("PACK", 2, 3), ("Fully Connected", 8, 4), ("Fully Connected", 8, 2)]
    expected = {"PACK": 2e-6, "Fully Connected": 4e-6, "the last Fully Connected": 2e-6, "rest, and the profiler": 8e-6}
    found = modules("edge_profile").operators_of([step, slower])
    assert {name: seconds for name, (_, seconds) in found.items()} == pytest.approx(expected)
    assert [count for count, _ in found.values()] == [1, 1, 1, 0]


@pytest.mark.long
def test_the_edge_measures_the_same_weights_everywhere_and_profiles_them(tmp_path):
    lengths = ("--prompt", "16", "--tokens", "4", "--cache-length", "32", "--prefill-lengths", "16", "--repeats", "1")
    options = ("--size", "toy", "--work", str(tmp_path / "work"), "--ways", "float32", "int8", "--threads", "1", *lengths)
    done = run("edge.py", *options, "--out", str(tmp_path / "edge.md"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "edge.md").read_text("utf-8")
    (table,) = tables(done.stdout)
    sides = ["smolite .tflite", "smolite .litertlm", "smolite .litertlm, growing", "llama.cpp"]
    ways = [(side, way) for way in ("float32", "int8") for side in sides]
    assert [(row[0], row[1].split(" ")[0]) for row in table[1:]] == ways
    assert all(float(cell.replace(",", "")) > 0 for row in table[1:] for cell in (row[2], row[4]))
    assert all(float(cell.replace(",", "")) >= 0 for row in table[1:] for cell in row[7:12])  # a toy hardly takes memory
    scores = [float(row[-1]) for row in table[1:]]
    assert max(scores[:4]) - min(scores[:4]) <= 1e-4 and max(scores) - min(scores) < 0.01
    made = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "work").rglob("*.*"))
    profile = run("edge.py", *options, "--profile")
    assert profile.returncode == 0, profile.stderr
    assert made == sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "work").rglob("*.*"))
    titles = [line for line in profile.stdout.splitlines() if line.startswith("####")]
    assert titles == [f"#### {way}, {name}, 1 thread" for way in ("float32", "int8") for name in ("decode", "prefill_16")]
    names = [[row[0] for row in table[1:]] for table in tables(profile.stdout)]
    assert len(names) == 4 and all("rest, and the profiler" in column for column in names)


@pytest.mark.long
def test_decode_prints_a_row_for_each_engine():
    lengths = ("--prompt", "8", "--tokens", "4", "--cache", "16")
    done = run("decode.py", "--size", "toy", "--repeats", "1", *lengths, "--backend", BACKEND)
    assert done.returncode == 0, done.stderr
    (table,) = tables(done.stdout)
    files = [["smolite .tflite", f"{kind}, {n}"] for kind in ("float32", "int8") for n in ("1 thread", "2 threads")]
    peers = [["keras-hub", BACKEND], ["transformers", "torch"]]
    assert [row[:2] for row in table] == [["engine", "on"], ["smolite", BACKEND], *peers, *files]
    assert all(float(row[2].replace(",", "")) > 0 for row in table[1:])
    assert table[2][4] and not table[1][4]


@pytest.mark.slow
def test_lookup_counts_what_a_call_gives(tmp_path, tmp_path_factory):
    place = tmp_path / "work" / str(DRAFTS) / "model.tflite"
    place.parent.mkdir(parents=True)
    shutil.copy(windowed_file(tmp_path_factory), place)
    turns = [{"role": "user", "content": "안녕"}, {"role": "assistant", "content": "반가워"}]
    (tmp_path / "short.jsonl").write_text(json.dumps({"messages": turns}), "utf-8")
    options = ("--drafts", str(DRAFTS), "--work", str(tmp_path / "work"), "--dataset", str(tmp_path / "short.jsonl"))
    done = run("lookup.py", str(exported_run(tmp_path_factory)), *options, "--tokens", "20", "--repeats", "1")
    assert done.returncode == 0, done.stderr
    (table,) = tables(done.stdout)
    new, again, _ = [float(row[-1]) for row in table[1:]]
    assert [row[1] for row in table[1:]] == ["nothing comes again", "the prompt once more", "replies"]
    assert new <= 1 < again and all(float(row[2].replace(",", "")) > 0 for row in table[1:])


@pytest.mark.slow
def test_cold_start_measures_each_engine_and_backend(tmp_path_factory):
    options = ("--engine", "int8", "keras", "--backend", BACKEND, "--repeats", "1")
    done = run("cold_start.py", str(exported_run(tmp_path_factory)), *options)
    assert done.returncode == 0, done.stderr
    (table,) = tables(done.stdout)
    int8, keras = table[1:]
    assert [row[1:3] for row in (int8, keras)] == [["int8", BACKEND], ["keras", BACKEND]]
    assert all(float(int8[column].replace(",", "")) < float(keras[column].replace(",", "")) for column in (3, 5, 7))


def test_cold_start_quotes_a_start_that_fails(tmp_path):
    done = run("cold_start.py", str(tmp_path), "--engine", "int8", "--backend", BACKEND, "--repeats", "1")
    assert done.returncode == 1 and "ended with 1" in done.stderr and "is not a run directory" in done.stderr
