"""Referees: transformers reading what we write, and the numpy reference."""

import dataclasses
import errno
import json
import shutil
import subprocess

import keras
import numpy as np
import pytest
import reference
from reference import AWKWARD_CONFIGS, random_weights
from safetensors.numpy import load_file

import smolite.checkpoint.run as checkpoint
import smolite.checkpoint.tensors as tensor_files
from smolite.checkpoint.run import Run, load, load_model, open_run, save
from smolite.checkpoint.weights import assign_weights, model_weights
from smolite.data.template import ChatTemplate, Conversation, Message
from smolite.models.causal_lm import CausalLM
from smolite.text.tokenizer import train_tokenizer

TEXTS = ["안녕하세요, 오늘 날씨가 좋네요.", "밥은 먹었어? 응, 방금 먹었어!", "내일 같이 영화 볼래요?"] * 5
TEMPLATE = ChatTemplate(assistant_prefix="답: ")
RECIPE = {"verb": "finetune", "data": "대화.jsonl", "options": {"epochs": 3}}
FILES = "config.json generation_config.json model.safetensors recipe.json tokenizer.model tokenizer_config.json".split()
IDS = np.random.RandomState(0).randint(0, 280, (2, 11))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(TEXTS, tmp_path_factory.mktemp("tokenizer") / "t.model", vocab_size=320)


@pytest.fixture(scope="module")
def model(tokenizer):
    config = dataclasses.replace(AWKWARD_CONFIGS["grouped"], vocab_size=tokenizer.vocab_size, dropout=0.1)
    model = CausalLM(config)
    assign_weights(model, random_weights(model.config))
    return model


@pytest.fixture(scope="module")
def saved(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "run"
    return save(folder, model, tokenizer, template=TEMPLATE, recipe=RECIPE)


@pytest.fixture
def run(saved, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(saved, tmp_path / "run")


def logits(model):
    return reference.run(model, IDS)


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


def test_a_run_comes_back_whole(saved, model, tokenizer):
    assert sorted(path.name for path in saved.iterdir()) == FILES
    assert [path.name for path in saved.parent.iterdir()] == ["run"]
    run = load(saved)
    assert run.model.config == model.config and run.path == saved
    assert run.tokenizer.model_proto == tokenizer.model_proto
    assert run.template == TEMPLATE
    assert run.recipe.items() >= RECIPE.items()
    for name, tensor in model_weights(model).items():
        np.testing.assert_array_equal(model_weights(run.model)[name], tensor)


def test_the_weights_are_those_of_the_reference(saved, model):
    tensors, expected = load_file(saved / "model.safetensors"), random_weights(model.config)
    assert sorted(tensors) == sorted(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(tensors[name], tensor)
    expected = np.stack([reference.forward(model.config, tensors, row) for row in IDS])
    close(logits(model), expected)


def test_transformers_reads_what_we_write(saved, model, tokenizer):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(saved)
    with torch.no_grad():
        close(logits(model), theirs(torch.tensor(IDS)).logits.numpy())
    assert theirs.config.eos_token_id == theirs.generation_config.eos_token_id == tokenizer.end_id
    assert theirs.config.bos_token_id == tokenizer.start_id and theirs.config.pad_token_id == tokenizer.pad_id


def test_transformers_writes_dialogues_as_we_do(model, tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(save(tmp_path / "run", model, tokenizer))
    turns = [Message("user", "내일 영화 볼래요?"), Message("assistant", "응, 좋네요.")] * 2
    dialogue = [{"role": turn.role, "content": turn.content} for turn in turns]
    ids, _ = ChatTemplate().render(Conversation(tuple(turns)), tokenizer)
    assert theirs.apply_chat_template(dialogue)["input_ids"] == ids


def test_half_precision_runs(saved, model, tmp_path, tokenizer):
    mixed = load(saved, dtype="mixed_bfloat16").model
    assert mixed.blocks[0].attention.query.compute_dtype == "bfloat16"
    half = load_model(saved, dtype="bfloat16")
    folder = save(tmp_path / "half", half, tokenizer)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    kept = load_file(folder / "model.safetensors")["model.norm.weight"]
    assert kept.dtype == "bfloat16"
    np.testing.assert_array_equal(model_weights(load_model(folder))["model.norm.weight"], kept.astype("float32"))


def test_keras_own_files_work(model, tmp_path):
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    close(logits(again), logits(model))
    model.save_weights(tmp_path / "m.weights.h5")
    other = CausalLM(model.config)
    other.load_weights(tmp_path / "m.weights.h5")
    close(logits(other), logits(model))


def test_the_recipe_names_version_and_commit(saved, model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load(save("outside", model, tokenizer)).recipe["git_commit"] is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "outside/recipe.json"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert load(save("clean", model, tokenizer)).recipe["git_commit"] == head
    (tmp_path / "outside" / "recipe.json").write_text("{}")
    recipe = load(save("dirty", model, tokenizer)).recipe
    assert recipe["git_commit"] == f"{head}-dirty" and "smolite_version" in recipe


def test_an_existing_directory_is_kept_unless_allowed(run, model, tokenizer):
    before = contents(run)
    with pytest.raises(FileExistsError, match="must be a new directory. Received: one that exists already. Choose"):
        save(run, model, tokenizer)
    assert contents(run) == before
    (run / "log.csv").write_text("epoch,loss\n")
    save(run, model, tokenizer, recipe={"new": True}, overwrite=True)
    assert load(run).recipe["new"] and (run / "log.csv").read_text() == "epoch,loss\n"
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_an_empty_directory_is_free_and_a_file_is_not(model, tokenizer, tmp_path):
    (tmp_path / "run").mkdir()
    load(save(tmp_path / "run", model, tokenizer))
    with pytest.raises(NotADirectoryError, match="config.json must be a directory. Received: a file"):
        save(tmp_path / "run" / "config.json", model, tokenizer, overwrite=True)


@pytest.mark.parametrize("writer", ["save_file", "write_file"])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt("stopped")])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_disk_or_an_interrupt_leaves_the_old_run_whole(run, model, tokenizer, monkeypatch, writer, failure, overwrite):
    target = run if overwrite else run.with_name("new")
    before = contents(run)

    def fails(first, second, **settings):
        path = next(each for each in (first, second) if not isinstance(each, dict | bytes))
        path.write_bytes(b"half")
        raise failure

    monkeypatch.setattr({"save_file": tensor_files, "write_file": checkpoint}[writer], writer, fails)
    with pytest.raises(type(failure), match="No space left|stopped"):
        save(target, model, tokenizer, overwrite=overwrite)
    assert contents(run) == before
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_a_limit_of_the_system_on_file_size_is_an_os_error(run, model, tokenizer):
    resource = pytest.importorskip("resource")
    before = contents(run)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before["model.safetensors"]) - 1, hard))
    try:
        with pytest.raises(OSError, match="model.safetensors could not be written.*Make room and save again"):
            save(run, model, tokenizer, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(run) == before
    assert [path.name for path in run.parent.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "run is not a run directory, which must hold config.json. Received a folder with: generation"),
        ("model.safetensors", "must hold model.safetensors. It is missing. Copy the whole folder"),
        ("tokenizer.model", "must hold a SentencePiece tokenizer.model. Received: none. Copy the file"),
    ],
)
def test_a_missing_file_is_named(run, name, message):
    (run / name).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        load(run)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "recipe.json"])
def test_broken_json_is_named(run, name):
    (run / name).write_text('{"a": 1,')
    with pytest.raises(ValueError, match=rf"{name}.* must be JSON. Received: .*line 1 column 9"):
        load(run)
    (run / name).write_text("[1]")
    with pytest.raises(ValueError, match=rf"{name}.* must hold a JSON object. Received: \[1\]"):
        load(run)


def test_truncated_files_are_named(run):
    whole = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="model.safetensors must be a whole safetensors file"):
        load(run)
    (run / "tokenizer.model").write_bytes((run / "tokenizer.model").read_bytes()[:1000])
    with pytest.raises(ValueError, match="tokenizer.model"):
        load(run)


def test_files_that_do_not_fit_together_are_named(run, model, tmp_path):
    edit(run / "config.json", num_hidden_layers=4)
    with pytest.raises(ValueError, match="Missing: model.layers.3.input_layernorm.weight, .* and 6 more"):
        load(run)
    edit(run / "config.json", rope_scaling={"factor": 2}, use_moe=True)
    with pytest.raises(ValueError, match=r"config.json: .*rope_scaling=.*; use_moe=True \(not known\)"):
        load(run)
    other = train_tokenizer(TEXTS, tmp_path / "other.model", vocab_size=300)
    with pytest.raises(ValueError, match="as many pieces as the `vocab_size` of the model, 320. Received: 300"):
        save(tmp_path / "new", model, other)
    assert not (tmp_path / "new").exists()


def test_another_tokenizer_or_template_is_named(run, tmp_path, model):
    edit(run / "tokenizer_config.json", smolite={}, chat_template="{{ messages }}")
    with pytest.raises(ValueError, match="`chat_template` must be one that smolite wrote. Received: '{{ messages }}'"):
        load(run)
    train_tokenizer(TEXTS, run / "tokenizer.model", vocab_size=300, overwrite=True)
    with pytest.raises(ValueError, match="as many pieces as the `vocab_size` of config.json, 320. Received: 300"):
        load(run)
    (run / "tokenizer.model").rename(run / "tokenizer.json")
    with pytest.raises(ValueError, match="must be a whole tokenizer.json. Received: .*tokenizer.json, with this problem"):
        load(run)
    assert load_model(run).config == model.config


def test_a_run_that_is_opened_reads_each_part_at_its_first_use(run, model, tokenizer, monkeypatch):
    (run / "model.safetensors").unlink()
    (run / "recipe.json").write_text("[1]")
    opened = open_run(run)
    assert (opened.config, opened.exports) == (model.config, run / "export")
    assert opened.tokenizer.model_proto == tokenizer.model_proto and opened.template == TEMPLATE
    with pytest.raises(FileNotFoundError, match="must hold model.safetensors. It is missing"):
        _ = opened.model
    with pytest.raises(ValueError, match="recipe.json must hold a JSON object"):
        _ = opened.recipe
    for path in run.iterdir():
        path.unlink()
    assert opened.tokenizer is opened.tokenizer and opened.template == TEMPLATE and opened.config == model.config


def test_what_cannot_be_a_run_is_refused_when_it_is_opened(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a run directory"):
        open_run(tmp_path)


def test_a_run_of_parts_is_read_from_no_file(model, tokenizer, tmp_path):
    made = Run.from_parts(tmp_path / "none", model=model, tokenizer=tokenizer)
    assert (made.config, made.template, made.recipe) == (model.config, None, {})
    other = CausalLM(dataclasses.replace(model.config, num_layers=1))
    changed = made.replace(model=other, template=ChatTemplate(), path=tmp_path)
    assert (changed.config, changed.template, changed.path) == (other.config, ChatTemplate(), tmp_path)
    assert made.config == model.config and made.template is None and changed.tokenizer is tokenizer
    with pytest.raises(ValueError, match="The parts of a run are model, path, recipe, template, tokenizer. Received: engine"):
        made.replace(engine=None)


def test_a_template_with_other_markers_is_refused(model, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="Missing: <bot>"):
        save(tmp_path / "run", model, tokenizer, template=ChatTemplate(assistant_prefix="<bot>"))
    assert not (tmp_path / "run").exists()


def test_no_directory_and_no_run_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="A run directory must exist. Received: .*none. Check the path"):
        load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="not a run directory.*Received a folder with: nothing. Give a folder"):
        load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="A run must be a directory. Received: the file .*Give its folder"):
        load(tmp_path / "file")
