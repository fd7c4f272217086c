""".litertlm files: made, opened and measured by LiteRT-LM, refused, interrupted."""

import dataclasses
import json
import re
import shutil
import sys
from functools import partial

import litert_lm
import pytest
from bundled import small_bundles
from exported import ROOT, SLOTS, random_weights, run_apart, save_small_run, small_config
from tiny_json import ROLES, trained

from smolite.checkpoint import run as checkpoint
from smolite.cli.bench import bench
from smolite.data.hub_templates import SMOLLM2_CHAT
from smolite.exporters import exporting
from smolite.exporters.exporting import export
from smolite.exporters.litertlm.build import TEMPERATURE, TOP_K, TOP_P, check_run
from smolite.exporters.litertlm.engine import LiteRTLMEngine, count_slots, measure_speeds
from smolite.models.causal_lm import CausalLM
from smolite.serving.open import engine_names
from smolite.text.json_tokenizer import JsonTokenizer


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_bundles(tmp_path_factory)


def test_the_benchmark_mode_gives_speeds(small):
    assert all(speed > 0 for speed in measure_speeds(small[1] / "model_int8.litertlm", prompt_tokens=16, new_tokens=8))


@pytest.mark.parametrize("ask", [count_slots, partial(measure_speeds, prompt_tokens=16, new_tokens=8)])
def test_what_is_no_bundle_is_refused(tmp_path, ask):
    (tmp_path / "model.litertlm").write_bytes(b"no bundle")
    with pytest.raises(ValueError, match=r"A whole \.litertlm file was expected. Received: .*model\.litertlm; LiteRT-LM says"):
        ask(tmp_path / "model.litertlm")


def test_a_measurement_that_stops_early_is_no_speed(small):
    with pytest.raises(RuntimeError, match=r"was to read 16 tokens and write 4000\. It did \(16, \d+\): .*model\.litertlm"):
        measure_speeds(small[1] / "model.litertlm", prompt_tokens=16, new_tokens=4000)


def test_bench_prints_a_line_for_each_bundle(small, tmp_path, capsys):
    shutil.copytree(small[0].path, tmp_path / "run", ignore=shutil.ignore_patterns("export"))
    shutil.copytree(small[1], tmp_path / "run" / "export")
    bench(run=str(tmp_path / "run"), repeats=1, tokens=4000)  # until the caches are full
    head, *lines = capsys.readouterr().out.splitlines()
    assert f"of 1; prompt {SLOTS // 2}, decoded {SLOTS // 2}" in head
    assert [line.split()[0] for line in lines] == ["keras", "model.litertlm", "model_int8.litertlm"]


def test_bench_leaves_out_what_has_no_runtime_here(small, tmp_path, capsys, monkeypatch):
    shutil.copytree(small[0].path, tmp_path / "run", ignore=shutil.ignore_patterns("export"))
    shutil.copytree(small[1], tmp_path / "run" / "export")
    (tmp_path / "run" / "export" / "model.tflite").touch()
    for module in ("litert_lm", "ai_edge_litert", "ai_edge_litert.compiled_model"):
        monkeypatch.setitem(sys.modules, module, None)
    bench(run=str(tmp_path / "run"), repeats=1, tokens=2)
    head, *lines = capsys.readouterr().out.splitlines()
    assert re.match("keras +[0-9]", lines[0]) and "decoded 2" in head
    assert [line.split(" left out: ")[0] for line in lines[1:]] == ["tflite", "model.litertlm", "model_int8.litertlm"]
    assert lines[1].endswith('runs on ai-edge-litert. Run: pip install "smolite[export]"')
    assert lines[2].endswith('runs on litert-lm. Run: pip install "smolite[litertlm]"')


def test_the_sampler_of_the_file(small):
    with litert_lm.ModelInfo(str(small[1] / "model.litertlm")) as info:
        default = info.llm.default_sampler_params
    assert (default.top_k, default.top_p, default.temperature) == (TOP_K, pytest.approx(TOP_P), pytest.approx(TEMPERATURE))


def test_nothing_is_said_on_standard_error(small, capfd):
    LiteRTLMEngine(small[1] / "model.litertlm").reply("안녕", max_new_tokens=2)
    assert capfd.readouterr() == ("", "")


def test_a_bundle_is_not_offered_for_a_chat_here(small, tmp_path):
    run = small[0].replace(path=tmp_path)
    shutil.copytree(small[1], tmp_path / "export")
    assert engine_names(run) == ["keras"]


def test_what_is_refused(small, tmp_path, monkeypatch):
    run = small[0]
    with pytest.raises(ValueError, match=r"A \.litertlm file holds a chat template. Received: .* without one. Finetune it"):
        check_run(run.replace(template=None))
    with pytest.raises(FileNotFoundError, match=r"A \.litertlm file was expected. Received: .*no\.litertlm. Make one with"):
        LiteRTLMEngine(tmp_path / "no.litertlm")
    monkeypatch.setitem(sys.modules, "litert_lm", None)
    with pytest.raises(ImportError, match=r'runs on litert-lm. Run: pip install "smolite\[litertlm\]"'):
        LiteRTLMEngine(small[1] / "model.litertlm")


def test_a_run_without_a_template_is_refused_before_the_conversion(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_convert_apart", lambda request: pytest.fail("it was converted"))
    tokenizer = JsonTokenizer(trained(), roles=ROLES)  # which lacks the markers of the default template
    run = checkpoint.save(tmp_path / "run", CausalLM(small_config(tokenizer.vocab_size)), tokenizer)
    assert checkpoint.load(run).template is None
    with pytest.raises(ValueError, match=r"A \.litertlm file holds a chat template. Received: .* without one. Finetune it"):
        export(run, format="litertlm")
    assert not list((run / "export").iterdir())


@pytest.mark.slow
def test_an_encoder_decoder_is_refused(tmp_path):
    config = dataclasses.replace(small_config(330), num_encoder_layers=1)
    with pytest.raises(ValueError, match="LiteRT-LM runs no encoder-decoder. Received: "):
        model = dataclasses.make_dataclass("Model", ["config"])(config)
        check_run(checkpoint.Run.from_parts(ROOT, model=model, tokenizer=None))


def test_missing_packages_are_named():
    code = """if True:
        import sys
        sys.modules["litert_lm"] = sys.modules["litert_lm_builder"] = None
        from smolite.exporters.exporting import export
        try:
            export("a run", format="litertlm")
        except ImportError as error:
            print(error)
    """
    said = 'Missing: litert-lm-builder, litert-lm-api. Run: pip install "smolite[litertlm]"\n'
    assert run_apart(code).endswith(said)


def test_an_interrupted_export_leaves_nothing(small, tmp_path, monkeypatch):
    def interrupted(request):
        request.path.write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "_convert_apart", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(small[0].path, format="litertlm", out=tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_file_that_says_something_else_is_not_left_behind(small, tmp_path, monkeypatch):
    int8 = small[1] / "model_int8.litertlm"
    monkeypatch.setattr(exporting, "_convert_apart", lambda request: shutil.copy(int8, request.path))
    with pytest.raises(RuntimeError, match=r"was not kept(.|\n)*model\.litertlm: a log probability differs by"):
        export(small[0].path, format="litertlm", out=tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_export_writes_a_verified_file_alone(tmp_path, capsys):
    run = save_small_run(tmp_path)
    path = export(run, format="litertlm", quantize="int8", prefill_lengths=(8,), cache_length=64)
    assert path.name == "model_int8.litertlm"
    assert {file.name for file in path.parent.iterdir()} == {path.name, "MANIFEST.json", "verify.json", "verify.md"}
    said = capsys.readouterr().out
    for words in ("loading", "converting", "bundling", "LiteRT-LM"):
        assert words in said
    assert json.loads((path.parent / "verify.json").read_text("utf-8"))["passed"]


@pytest.mark.slow
def test_a_run_with_a_byte_level_tokenizer(tmp_path):
    tokenizer = JsonTokenizer(trained(), roles=ROLES)
    model = CausalLM(dataclasses.replace(small_config(tokenizer.vocab_size), context_length=192))
    random_weights(model, 3)
    run = checkpoint.save(tmp_path / "run", model, tokenizer, template=SMOLLM2_CHAT)
    assert export(run, format="litertlm", prefill_lengths=(16,)).name == "model.litertlm"
    rows = json.loads((run / "export" / "verify.json").read_text("utf-8"))["rows"]
    assert [row["artifact"] for row in rows][1:] == ["model.litertlm", "tokenizer in model.litertlm"]
    assert rows[1]["logits"] < 1e-4
