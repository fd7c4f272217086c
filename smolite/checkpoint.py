"""The run directory: a Hugging Face Llama folder with everything to go on from.

`config.json` and `model.safetensors` in Hugging Face's names and layout, `tokenizer.model`,
`tokenizer_config.json` with the chat template, `generation_config.json`, and `recipe.json`: data, settings,
version and git commit.
"""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

import smolite
from smolite.chat import ChatTemplate, Conversation, Message
from smolite.config import ModelConfig
from smolite.files import new_directory, write_file
from smolite.models import CausalLM
from smolite.tokenizer import Tokenizer
from smolite.weights import assign_weights, model_weights, read_tensors

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.model"
_MARKER_OF_HF = {"bos": "<start>", "eos": "<end>", "pad": "<pad>", "unk": "<unk>"}


@dataclass(frozen=True)
class Run:
    """What a run directory holds.

    Args:
        model: the model.
        tokenizer: the tokenizer it was trained with.
        template: how dialogues are written for it.
        recipe: data and settings that it was made with, for `recipe.json`.
        path: the directory.
    """

    model: CausalLM
    tokenizer: Tokenizer
    template: ChatTemplate
    recipe: dict[str, Any]
    path: Path


def save(
    path: str | Path,
    model: CausalLM,
    tokenizer: Tokenizer,
    *,
    template: ChatTemplate | None = None,
    recipe: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a run directory, whole or not at all.

    Args:
        path: the directory to make.
        model: the model.
        tokenizer: the tokenizer it was trained with.
        template: how dialogues are written for it. Default: `ChatTemplate()`.
        recipe: what the run was made with, ready for JSON; version and git commit are added.
        overwrite: whether the run in `path` may be replaced. Other files there, such as logs, are kept.

    Returns:
        `path`.

    Raises:
        FileExistsError: `path` is a directory that is not empty, and `overwrite` is false.
        ValueError: tokenizer and model differ in vocabulary, or the tokenizer lacks a marker of the template.
        OSError: the disk is full, or the folder cannot be written; what was there before is whole.
    """
    path = Path(path)
    _check_vocabulary(model.config, tokenizer, where="the model")
    template = template or ChatTemplate()
    if template != ChatTemplate():
        template.render(Conversation((Message("user", ""), Message("assistant", ""))), tokenizer)
    with new_directory(path, overwrite=overwrite) as folder:
        write_file(folder / TOKENIZER_FILE, tokenizer.model_proto)
        for name, content in _documents(model, tokenizer, template=template, recipe=recipe or {}).items():
            write_file(folder / name, (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode())
        _write_tensors(folder / WEIGHTS_FILE, model_weights(model))
    return path


def load(path: str | Path, *, dtype: Any = None) -> Run:
    """Reads a run directory, or a Hugging Face folder of the same form with a `tokenizer.model`.

    Args:
        path: the directory.
        dtype: Keras dtype or policy of the model, for example `"mixed_bfloat16"`.

    Raises:
        FileNotFoundError: the directory or a file in it is missing.
        ValueError: a file is broken, the files do not fit together, or something in them is not implemented.
    """
    folder = _checked_folder(path)
    config = _read_config(folder)
    tokenizer = _read_tokenizer(folder)
    _check_vocabulary(config, tokenizer, where=CONFIG_FILE)
    template = _read_template(folder)
    recipe = _read_json(folder / "recipe.json") if (folder / "recipe.json").exists() else {}
    return Run(load_model(folder, dtype=dtype), tokenizer, template, recipe, folder)


def load_model(path: str | Path, *, dtype: Any = None) -> CausalLM:
    """Reads only the model of a run directory or a Hugging Face Llama folder; the rest is as in `load`."""
    folder = _checked_folder(path)
    config = _read_config(folder)
    tensors = read_tensors(folder)
    model = CausalLM(config, dtype=dtype)
    assign_weights(model, tensors)
    return model


def _documents(
    model: CausalLM, tokenizer: Tokenizer, *, template: ChatTemplate, recipe: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The JSON files of a run directory, by name."""
    ids = {f"{hf}_token_id": tokenizer.markers.get(_MARKER_OF_HF[hf]) for hf in ("bos", "eos", "pad")}
    known = {*tokenizer.markers, "<unk>"}
    markers = {f"{hf}_token": name for hf, name in _MARKER_OF_HF.items() if name in known}
    settings: dict[str, Any] = {
        "tokenizer_class": "LlamaTokenizer",
        **markers,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "legacy": True,
        "model_max_length": model.config.context_length,
    }
    if known.issuperset(template.markers):
        settings |= {"chat_template": template.jinja(), "smolite": {"chat_template": template.to_dict()}}
    return {
        CONFIG_FILE: {**model.config.to_hf(), **ids, "dtype": model.token_embedding.variable_dtype},
        "tokenizer_config.json": settings,
        "generation_config.json": ids,
        "recipe.json": {**recipe, "smolite_version": _version(), "git_commit": _git_commit()},
    }


def _version() -> str:
    return getattr(smolite, "__version__", "unknown")


def _git_commit() -> str | None:
    """The commit of the working directory, ending in `-dirty` where files differ; None outside of git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}. Make room and save again.") from error


def _check_vocabulary(config: ModelConfig, tokenizer: Tokenizer, *, where: str) -> None:
    if config.vocab_size != tokenizer.vocab_size:
        raise ValueError(
            f"The tokenizer must have as many pieces as the `vocab_size` of {where}, {config.vocab_size}. "
            f"Received: {tokenizer.vocab_size}. Use the tokenizer that the model was trained with."
        )


def _checked_folder(path: str | Path) -> Path:
    folder = Path(path)
    if not folder.exists():
        raise FileNotFoundError(f"A run directory must exist. Received: {folder}. Check the path.")
    if not folder.is_dir():
        raise NotADirectoryError(f"A run must be a directory. Received: the file {folder}. Give its folder.")
    if not (folder / CONFIG_FILE).is_file():
        names = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
        raise FileNotFoundError(
            f"{folder} is not a run directory, which must hold {CONFIG_FILE}. Received a folder with: "
            f"{names}. Give a folder that `smolite.save` or a recipe wrote."
        )
    return folder


def _read_config(folder: Path) -> ModelConfig:
    try:
        return ModelConfig.from_hf(_read_json(folder / CONFIG_FILE))
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG_FILE}: {error}") from error


def _read_tokenizer(folder: Path) -> Tokenizer:
    if not (folder / TOKENIZER_FILE).is_file():
        other = "tokenizer.json, which is another format" if (folder / "tokenizer.json").exists() else "none"
        raise FileNotFoundError(
            f"{folder} must hold a SentencePiece {TOKENIZER_FILE}. Received: {other}. Copy the file into the "
            "folder, or read only the model with `load_model`."
        )
    return Tokenizer(folder / TOKENIZER_FILE)


def _read_template(folder: Path) -> ChatTemplate:
    """The template that `save` wrote, or the default one; one that came from elsewhere is refused."""
    path = folder / "tokenizer_config.json"
    settings = _read_json(path) if path.exists() else {}
    fields = settings.get("smolite", {}).get("chat_template")
    if fields is not None:
        return ChatTemplate.from_dict(fields)
    if settings.get("chat_template", ChatTemplate().jinja()) != ChatTemplate().jinja():
        raise ValueError(
            f"{path}: `chat_template` must be one that smolite wrote. Received: "
            f"{settings['chat_template']!r:.60}. Read only the model with `load_model`, and make a "
            "`ChatTemplate` of its prefixes and suffixes."
        )
    return ChatTemplate()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be JSON. Received: {error}. Copy or save it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object. Received: {content!r:.40}. Save it again.")
    return content
