"""Referees: folders that transformers writes and reads, and huggingface_hub's own code on a cache laid out by hand."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
import transformers
from reference import AWKWARD_CONFIGS
from tiny_json import ROLES, SMOLLM2, byte_level, trained

import smolite
from smolite.checkpoint.hub import resolve_model
from smolite.checkpoint.run import load, load_model, save
from smolite.data.hub_templates import SMOLLM2_CHAT
from smolite.data.template import ChatTemplate, Conversation, Message
from smolite.evaluation.likelihood import evaluate
from smolite.generation.keras_engine import KerasEngine
from smolite.generation.loop import generate
from smolite.generation.replies import reply
from smolite.text.json_tokenizer import JsonTokenizer
from smolite.text.tokenizer import train_tokenizer

ROOT, NAME = Path(__file__).parents[2], "HuggingFaceTB/SmolLM2-135M-Instruct"
PIECES = byte_level().get_vocab_size()
SPARE = 24  # ids of the model beyond the tokenizer's
TALK = [Message("user", "안녕하세요!"), Message("assistant", "오늘 날씨가 정말 좋네요."), Message("user", "it's 12")]
DICTS = [dataclasses.asdict(message) for message in TALK]
IDS = np.random.RandomState(0).randint(0, PIECES, (2, 11))


def write_folder(folder, *, template=SMOLLM2, dtype="float32", shards=False):
    """A folder as transformers writes it; the tokens have the roles that SmolLM2-Instruct gives them."""
    torch.manual_seed(0)
    changes = {"vocab_size": PIECES + SPARE, "max_position_embeddings": 512, "initializer_range": 0.2, "dtype": None}
    hf = {**AWKWARD_CONFIGS["grouped"].to_hf(), **changes}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**hf)).to(getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size="20KB" if shards else "5GB")
    tokens = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level(), chat_template=template, **tokens)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("hub") / "instruct")


@pytest.fixture
def copy(folder, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(folder, tmp_path / "copy")


def theirs(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.numpy()


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("dtype", "shards"), [("float32", False), ("bfloat16", True), ("float16", True)])
def test_a_folder_of_transformers_opens(tmp_path, dtype, shards):
    run = load(write_folder(tmp_path, dtype=dtype, shards=shards))
    assert (tmp_path / "model.safetensors").exists() != shards
    close(reference.run(run.model, IDS), theirs(tmp_path))
    assert run.template == SMOLLM2_CHAT and run.tokenizer.roles == ROLES and run.recipe == {}
    hub = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = hub.apply_chat_template(DICTS, add_generation_prompt=True)["input_ids"]
    assert run.template.prompt(TALK, run.tokenizer) == ids


def test_it_chats_and_stops_at_its_end(folder):
    run = load(folder)
    engine = KerasEngine(run.model, context_length=512)
    prompt = run.template.prompt(TALK, run.tokenizer)
    (ids,) = generate(engine, [prompt], max_new_tokens=8, stop_ids=[run.tokenizer.end_id])
    answer = reply(engine, TALK, tokenizer=run.tokenizer, template=run.template, max_new_tokens=8)
    assert answer == run.tokenizer.decode(ids)
    scores = evaluate(run.model, [Conversation(tuple(TALK[:2]))], tokenizer=run.tokenizer, template=run.template)
    assert scores.num_tokens == len(run.tokenizer.encode(TALK[1].content)) + 1


def test_what_we_save_is_read_by_transformers(folder, tmp_path):
    run = load(folder)
    saved = save(tmp_path / "saved", run.model, run.tokenizer, template=run.template)
    assert (saved / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert not (saved / "tokenizer.model").exists()
    np.testing.assert_array_equal(theirs(saved), theirs(folder))
    one, two = (transformers.AutoTokenizer.from_pretrained(each) for each in (folder, saved))
    assert two.encode("안녕 12") == one.encode("안녕 12") == run.tokenizer.encode("안녕 12")
    assert two.apply_chat_template(DICTS)["input_ids"] == one.apply_chat_template(DICTS)["input_ids"]
    assert (two.bos_token, two.eos_token, two.pad_token) == (one.bos_token, one.eos_token, one.pad_token)
    config = transformers.AutoConfig.from_pretrained(saved)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 0)
    again = load(saved)
    assert again.template == run.template and again.tokenizer.roles == ROLES
    assert again.tokenizer.vocab_size == PIECES + SPARE


def test_the_model_may_have_more_ids_than_the_tokenizer(folder, copy, tmp_path):
    tokenizer = load(folder).tokenizer
    assert tokenizer.vocab_size == PIECES + SPARE and tokenizer.decode([PIECES + SPARE - 1]) == ""
    with pytest.raises(
        ValueError, match=f"as many pieces as the `vocab_size` of the model, {PIECES + SPARE}. Received: {PIECES}"
    ):
        save(tmp_path / "run", load_model(folder), JsonTokenizer(trained()))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "vocab_size": PIECES - 1}))
    with pytest.raises(ValueError, match=f"`vocab_size` must be at least .*{PIECES}. Received: {PIECES - 1}"):
        load(copy)


def test_a_base_model_writes_plain_text_and_says_what_chatting_lacks(tmp_path):
    run = load(write_folder(tmp_path / "base", template=None))
    assert run.template is None
    engine = KerasEngine(run.model, context_length=64)
    (ids,) = generate(engine, [run.tokenizer.encode("안녕")], max_new_tokens=4)
    assert len(ids) == 4
    with pytest.raises(
        ValueError, match=r"markers <end>, <sep>, <start>. Missing: <end>, .*own markers: <\|endoftext\|>, <\|im_s"
    ):
        reply(engine, TALK, tokenizer=run.tokenizer, template=run.template)
    saved = save(tmp_path / "saved", run.model, run.tokenizer, template=run.template)
    assert load(saved).template is None and "chat_template" not in json.loads((saved / "tokenizer_config.json").read_text())


def test_a_foreign_template_is_refused(copy):
    (copy / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for message in messages %}[{{ message['content'] }}]{% endfor %}"
    )
    with pytest.raises(
        ValueError, match=r"chat_template.jinja: `chat_template` must be one .*SmolLM's ChatML either. Read only"
    ):
        load(copy)
    assert load_model(copy).config.num_layers == AWKWARD_CONFIGS["grouped"].num_layers


@pytest.mark.parametrize("form", ["text", "named"])
def test_a_template_in_the_tokenizers_config(copy, form):
    (copy / "chat_template.jinja").unlink()
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    named = [{"name": "tools", "template": "{{ tools }}"}, {"name": "default", "template": SMOLLM2}]
    settings |= {"chat_template": SMOLLM2 if form == "text" else named, "eos_token": {"content": "<|im_end|>", "lstrip": False}}
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    run = load(copy)
    assert run.template == SMOLLM2_CHAT and run.tokenizer.end_id == 2


def test_which_of_two_tokenizers_is_taken(copy, tmp_path):
    pieces = train_tokenizer(["안녕하세요 친구"] * 9, tmp_path / "t.model", vocab_size=280)
    config = json.loads((copy / "config.json").read_text())
    shutil.copy(tmp_path / "t.model", copy / "tokenizer.model")
    with pytest.raises(
        ValueError, match=rf"as many pieces as the `vocab_size` of config.json, {config['vocab_size']}. Received: 280"
    ):
        load(copy)
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**settings, "smolite": {"tokenizer": "tokenizer.json"}}))
    assert load(copy).tokenizer.end_id == 2
    (copy / "tokenizer.json").unlink()
    with pytest.raises(
        FileNotFoundError, match="must hold a byte-level tokenizer.json. Received: tokenizer.model. Copy the file"
    ):
        load(copy)
    assert pieces.vocab_size == 280


def test_saving_over_a_folder_leaves_no_other_tokenizer_or_template(copy, tmp_path):
    pieces = train_tokenizer(["안녕하세요 친구"] * 9, tmp_path / "t.model", vocab_size=280)
    model = smolite.CausalLM(dataclasses.replace(AWKWARD_CONFIGS["grouped"], vocab_size=280))
    save(copy, model, pieces, overwrite=True)
    assert not (copy / "tokenizer.json").exists() and not (copy / "chat_template.jinja").exists()
    assert load(copy).template == ChatTemplate() and load(copy).tokenizer.model_proto == pieces.model_proto


def cached(folder, cache, name=NAME):
    """Lays a folder out as huggingface_hub keeps what it has fetched: blobs, and links to them in a snapshot."""
    store = cache / f"models--{name.replace('/', '--')}"
    snapshot = store / "snapshots" / ("a" * 40)
    for part in (snapshot, store / "refs", store / "blobs"):
        part.mkdir(parents=True)
    (store / "refs" / "main").write_text("a" * 40)
    for number, file in enumerate(sorted(folder.iterdir())):
        blob = store / "blobs" / f"{number:040x}"
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def elsewhere(code, **environment):
    """Runs code in a process of its own, since the hub reads its environment once."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_a_name_is_opened_from_the_cache_without_a_network(folder, tmp_path):
    snapshot = cached(folder, tmp_path)
    code = (
        f"import smolite; run = smolite.load({NAME!r}); print(run.path, run.tokenizer.encode('안녕'), run.model.count_params())"
    )
    done = elsewhere(code, HF_HUB_CACHE=str(tmp_path))
    run = load(folder)
    expected = f"{snapshot} {run.tokenizer.encode('안녕')} {run.model.count_params()}"
    assert done.stdout.strip().splitlines()[-1:] == [expected], done.stderr


@pytest.mark.slow
def test_a_name_is_exported_to_a_folder_here(folder, tmp_path):
    cached(folder, tmp_path)
    code = (
        f"import os, smolite; os.chdir({str(tmp_path)!r}); print(smolite.export({NAME!r}, format='gguf'))\n"
        "from smolite.serving.open import engine_names; from smolite.exporters.verification.verification import verify\n"
        f"print(*engine_names(smolite.load({NAME!r})), verify({NAME!r}, max_new_tokens=4).passed)"
    )
    done = elsewhere(code, HF_HUB_CACHE=str(tmp_path))
    path = Path(NAME.split("/")[1], "export", "model.gguf")
    assert done.stdout.strip().splitlines()[-2:] == [str(path), "keras model.gguf True"], done.stderr
    assert (tmp_path / path).is_file() and not (tmp_path / NAME).exists()


def test_a_name_that_is_not_in_the_cache(tmp_path):
    done = elsewhere(f"from smolite.checkpoint.hub import resolve_model; resolve_model({NAME!r})", HF_HUB_CACHE=str(tmp_path))
    assert (
        f"ConnectionError: The Hugging Face hub must be reachable to fetch '{NAME}', of which there is no folder" in done.stderr
    )
    assert f"Check the path, try again when online, or copy the files of https://huggingface.co/{NAME}" in done.stderr


def test_a_folder_here_wins(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    shutil.copytree(folder, tmp_path / NAME)
    assert load_model(NAME).config.vocab_size == PIECES + SPARE
    with pytest.raises(ImportError, match=r"no folder 'some/model' here, and fetching .* `pip install \"smolite\[hf\]\"`"):
        resolve_model("some/model")


@pytest.mark.parametrize("name", ["runs", "a/b/c", "./a/b", "../b", Path("a/b")])
def test_what_can_only_be_a_path(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # `make demo` makes a folder `runs` where it is called
    with pytest.raises(FileNotFoundError, match="A run directory must exist. Received: .*. Check the path"):
        load(name)
