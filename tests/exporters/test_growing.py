""".litertlm files whose caches grow with the chat. Referees: files of fixed lengths in the same runtime, and Keras."""

import contextlib
import json
import shutil

import numpy as np
import pytest
from bundled import growing_bundles, lively_bundles
from exported import save_small_run
from test_faults import edit, turn_otherwise, write_to_the_first_slot

from smolite.exporters.exporting import export
from smolite.exporters.litert.flatbuffer import is_stored, open_flatbuffer, operator_counts, structure_problems
from smolite.exporters.litertlm.build import bundle
from smolite.exporters.litertlm.engine import LiteRTLMEngine
from smolite.exporters.planning.plan import plan
from smolite.exporters.verification.verification import verify

NAMES = ("model", "model_int8")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def growing(tmp_path_factory):
    return growing_bundles(tmp_path_factory)


@pytest.fixture(scope="module")
def pairs(growing, tmp_path_factory):
    """Name → the engine on a growing file, and on one of fixed lengths with the same weights."""
    fixed = lively_bundles(tmp_path_factory)[1]
    return {name: [LiteRTLMEngine(folder / f"{name}.litertlm") for folder in (growing[1], fixed)] for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 60])
def test_prompts_of_any_length_are_answered_as_by_fixed_caches(pairs, name, count):
    """An answer of 40 tokens makes the cache grow twice, by 16 slots each time."""
    text = ("나는 학생이에요 오늘 점심 " * 20)[:count]
    ours, theirs = pairs[name]
    assert ours.reply(text, max_new_tokens=40) == theirs.reply(text, max_new_tokens=40) != ""
    np.testing.assert_allclose(ours.score(text, " abc 점심"), theirs.score(text, " abc 점심"), atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_cache_grows_from_turn_to_turn(pairs, name):
    said = ["안녕하세요", "오늘 점심 뭐 먹을까?", "abc"]
    ours, theirs = (engine.converse(said, max_new_tokens=20) for engine in pairs[name])
    assert ours == theirs and all(ours)


@pytest.mark.parametrize("name", NAMES)
def test_a_cache_stops_growing_at_its_length(pairs, name):
    ours, theirs = (engine.reply("안녕하세요", max_new_tokens=1000) for engine in pairs[name])
    assert ours == theirs and len(ours) > 20


@pytest.mark.parametrize("name", NAMES)
def test_a_full_cache_ends_a_chat_no_sooner_than_a_fixed_one_does(pairs, name):
    """What is read without padding may fit where a padded turn does not. A prompt that does not fit is refused."""
    said = ["안녕하세요 반가워요"] * 12
    ours, theirs = ([*filter(None, _talk(engine, said))] for engine in pairs[name])
    assert 0 < len(theirs) <= len(ours) < 12 and ours[: len(theirs)] == theirs
    for engine in pairs[name]:
        with pytest.raises(RuntimeError):
            engine.reply("나는 학생이에요 " * 60, max_new_tokens=5)


def _talk(engine, said):
    """The answers, without the last ones where the runtime refuses a turn."""
    for count in range(len(said), 0, -1):
        with contextlib.suppress(RuntimeError):
            return [*engine.converse(said[:count], max_new_tokens=30), *[""] * (len(said) - count)]
    return []


def test_verify_passes_it(growing, tmp_path):
    run, folder = growing
    for name in NAMES:
        shutil.copy(folder / f"{name}.litertlm", tmp_path)
    turns = [{"from": "human", "value": "안녕"}, {"from": "gpt", "value": "반가워"}] * 2
    (tmp_path / "short.jsonl").write_text(json.dumps({"conversations": turns}), "utf-8")
    report = verify(run.path, out=tmp_path, dialogues=tmp_path / "short.jsonl", max_new_tokens=12)
    assert report.passed and {row.artifact for row in report.rows} >= {f"{name}.litertlm" for name in NAMES}


@pytest.mark.parametrize("fault", [turn_otherwise, write_to_the_first_slot])
def test_verify_finds_a_fault_in_it(growing, tmp_path, fault):
    run, folder = growing
    bundle(run, edit(folder / "model.tflite", tmp_path / "faulty.bin", fault), tmp_path / "model.litertlm", cache_length=160)
    report = verify(run.path, out=tmp_path, prompts=["안녕하세요 " * 5], max_new_tokens=6)
    (row,) = [row for row in report.rows if row.artifact == "model.litertlm"]
    assert any("a log probability differs by" in problem for problem in row.problems)


@pytest.mark.parametrize("name", NAMES)
def test_only_lengths_are_open_in_the_graph(growing, name):
    """Nothing in it measures a tensor: XNNPACK leaves a graph that does to slower operators."""
    run, folder = growing
    path, config = folder / f"{name}.tflite", run.model.config
    counts = operator_counts(path)
    assert not {"SHAPE", "FILL", "RANGE", "BROADCAST_TO"} & {operator for names in counts.values() for operator in names}
    assert structure_problems(path, config) == ["signatures prefill, decode", "dynamic shapes"]  # and one table
    (graph,) = open_flatbuffer(path).subgraphs
    shapes = {tensor.name: tensor.shapeSignature.tolist() for tensor in map(graph.tensors.__getitem__, graph.inputs)}
    caches = [shape for name, shape in shapes.items() if b"kv_cache" in name]
    heads, width = config.num_key_value_heads, config.head_dim
    assert len(caches) == 2 * config.num_layers
    assert all(shape in ([1, heads, -1, width], [1, heads, width, -1]) for shape in caches)


@pytest.mark.parametrize("name", NAMES)
def test_the_two_signatures_are_one_graph(growing, name):
    """So a runtime prepares every weight once."""
    model = open_flatbuffer(growing[1] / f"{name}.tflite")
    assert len(model.subgraphs) == 1
    keys = {signature.signatureKey: signature for signature in model.signatureDefs}
    assert set(keys) == {b"prefill", b"decode"} and {signature.subgraphIndex for signature in keys.values()} == {0}
    prefill, decode = ([(each.name, each.tensorIndex) for each in keys[key].outputs] for key in (b"prefill", b"decode"))
    assert prefill == decode and b"logits" in dict(decode)


@pytest.mark.parametrize("name", NAMES)
def test_its_weights_are_stored_once(growing, name):
    """The converter multiplies weights by the scale of the norm before them, and leaves none as it was beside the product."""
    buffers = filter(is_stored, open_flatbuffer(growing[1] / f"{name}.tflite").buffers)
    stored = sum(buffer.size or len(buffer.data) for buffer in buffers)
    weights = growing[0].model.config.num_parameters * (1 if "int8" in name else 4)
    assert abs(stored - weights) < 1000  # the smallest matrix has more


@pytest.mark.parametrize("name", NAMES)
def test_its_weights_are_aligned(growing, name):
    """As the schema wants them, which Python's flatbuffers does not do inside the tables."""
    large = [buffer for buffer in open_flatbuffer(growing[1] / f"{name}.tflite").buffers if buffer.size >= 1024]
    assert len(large) >= 4 * growing[0].model.config.num_layers and all(buffer.offset % 16 == 0 for buffer in large)


@pytest.mark.parametrize("name", [f"{name}.litertlm" for name in NAMES])
def test_it_is_as_large_as_planned(growing, name):
    run, folder = growing
    planned = plan(run.path, growing_cache=True).file(name).num_bytes
    assert abs(planned - (folder / name).stat().st_size) <= 16 * 1024  # a page


def test_export_writes_a_verified_file(tmp_path, capsys):
    run = save_small_run(tmp_path)
    path = export(run, format="litertlm", quantize="int8", cache_length=64, growing_cache=True)
    assert "tracing prefill of any length and decode" in capsys.readouterr().out
    made = json.loads((path.parent / "MANIFEST.json").read_text("utf-8"))["artifacts"]["model_int8.litertlm"]
    assert (made["prefill_lengths"], made["cache_length"]) == (None, 64)
    assert json.loads((path.parent / "verify.json").read_text("utf-8"))["passed"]
