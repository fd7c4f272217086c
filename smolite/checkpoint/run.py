"""The run directory: a Hugging Face Llama folder with everything to go on from.

`config.json` and `model.safetensors` in Hugging Face's names and layout, `tokenizer.model` or `tokenizer.json`,
`tokenizer_config.json` with the chat template, `generation_config.json`, and `recipe.json`: data, settings,
version and git commit.
"""

import copy
import json
import subprocess
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import smolite
from smolite.checkpoint import quantized_weights as quantized
from smolite.checkpoint.hub import export_folder, resolve_model
from smolite.checkpoint.tensors import read_tensors, write_tensors
from smolite.data import ChatTemplate, Conversation, Message, known_template
from smolite.files import new_directory, write_file
from smolite.models import ModelConfig
from smolite.text import ROLES, JsonTokenizer, Tokenizer

# A model needs Keras and its backend, seconds of a process that only chats with an exported file: what builds or reads one is
# imported where it does so.
if TYPE_CHECKING:
    from smolite.models import LanguageModel

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.model"
JSON_TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"
_PARTS = {"model", "tokenizer", "template", "recipe", "path"}
_MARKER_OF_HF = {"bos": "<start>", "eos": "<end>", "pad": "<pad>", "unk": "<unk>"}


class Run:
    """What a run directory holds; each part is read at its first use, and once.

    So whoever needs the tokenizer alone neither builds a model nor imports Keras. `open_run` gives one, and `load` one whose
    parts have all been read.

    Args:
        path: the directory.
        dtype: Keras dtype or policy of the model, for example `"mixed_bfloat16"`.
    """

    def __init__(self, path: Path, *, dtype: Any = None):
        self.path = path
        self._dtype = dtype

    @classmethod
    def from_parts(
        cls,
        path: str | Path,
        *,
        model: "LanguageModel",
        tokenizer: Tokenizer,
        template: ChatTemplate | None = None,
        recipe: Mapping[str, Any] | None = None,
    ) -> "Run":
        """A run whose parts are in memory, whether or not they are in the directory yet; each as the property of its name."""
        return cls(Path(path)).replace(model=model, tokenizer=tokenizer, template=template, recipe=dict(recipe or {}))

    def replace(self, **parts: Any) -> "Run":
        """The same run with other parts; what isn't given is shared, or still to be read.

        Args:
            parts: any of `model`, `tokenizer`, `template`, `recipe` and `path`.

        Raises:
            ValueError: another name.
        """
        if unknown := sorted(parts.keys() - _PARTS):
            raise ValueError(f"The parts of a run are {', '.join(sorted(_PARTS))}. Received: {', '.join(unknown)}.")
        changed = copy.copy(self)
        if "model" in parts:
            vars(changed).pop("config", None)
        # A cached property looks here before it reads.
        vars(changed).update(parts)
        return changed

    @cached_property
    def config(self) -> ModelConfig:
        """The shape of the model, from `config.json`; no model is built for it."""
        if (model := vars(self).get("model")) is not None:
            config: ModelConfig = model.config
            return config
        hf = dict(self._hf)
        if quantized.bits_of(hf):
            del hf["quantization_config"]
        try:
            return ModelConfig.from_hf(hf)
        except ValueError as error:
            raise ValueError(f"{self.path / CONFIG_FILE}: {error}") from error

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with."""
        tokenizer = _read_tokenizer(self.path, self._settings, vocab_size=self.config.vocab_size)
        _check_vocabulary(self.config, tokenizer, where=CONFIG_FILE)
        return tokenizer

    @cached_property
    def template(self) -> ChatTemplate | None:
        """How dialogues are written for the model.

        None for a model of plain text, whose tokenizer lacks our markers, and for an encoder-decoder.
        """
        return None if self.config.has_encoder else _read_template(self.path, self._settings, self.tokenizer)

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """Data and settings that the run was made with, for `recipe.json`."""
        return _read_json(self.path / "recipe.json", missing={})

    @cached_property
    def model(self) -> "LanguageModel":
        """The model, built and with its weights."""
        from smolite.checkpoint.weights import stored_model

        # The config first: where it asks for what isn't implemented, its sentence says more than that of missing weights.
        config, bits = self.config, quantized.bits_of(self._hf)
        tensors = quantized.QuantizedTensors(self.path / quantized.weights_file(bits)) if bits else read_tensors(self.path)
        return stored_model(config, tensors, dtype=self._dtype)

    @property
    def exports(self) -> Path:
        """The folder of its exported files, there or not; see `export_folder`."""
        return export_folder(self.path)

    @cached_property
    def _hf(self) -> dict[str, Any]:
        return _read_json(self.path / CONFIG_FILE)

    @cached_property
    def _settings(self) -> dict[str, Any]:
        return _read_json(self.path / "tokenizer_config.json", missing={})


def save(
    path: str | Path,
    model: "LanguageModel",
    tokenizer: Tokenizer,
    *,
    template: ChatTemplate | None = None,
    recipe: Mapping[str, Any] | None = None,
    bits: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a run directory, whole or not at all.

    What would be written is held to what `load` asks for before anything on the disk is touched. LoRA is merged into the
    weights; `save_adapter` writes it apart. A model that Keras quantized to int8 or int4 is written as the floats that its
    whole numbers stand for, and with `bits=8` as those of int8 again, the same, beside scales in float16 (at most 0.05 % away).
    The loaded run computes in floats, where Keras rounds the inputs of int8 layers, too.

    Args:
        path: the directory to make.
        model: the model.
        tokenizer: the tokenizer it was trained with.
        template: how dialogues are written for it. Default: `ChatTemplate()`; an encoder-decoder has none.
        recipe: what the run was made with, ready for JSON; version and git commit are added.
        bits: 8 or 4 for a file of about a quarter or a sixth of the size, `model_int8.safetensors` or `model_int4.safetensors`
            (see `quantized_weights.py`), which `load` reads as floats and transformers refuses. Default: the weights as they
            are.
        overwrite: whether the run in `path` may be replaced. Other files there, such as logs, are kept, but not another
            tokenizer or chat template, or other weights.

    Returns:
        `path`.

    Raises:
        FileExistsError: `path` is a directory that is not empty, and `overwrite` is false.
        ValueError: tokenizer and model differ in vocabulary, the tokenizer lacks a marker of the template, `bits` is not one
            of the above, or the model's weights are not those that its config describes.
        OSError: the disk is full, or the folder cannot be written; what was there before is whole.
    """
    from smolite.checkpoint.weights import model_weights

    path = Path(path)
    _check_vocabulary(model.config, tokenizer, where="the model")
    if template and model.config.has_encoder:
        raise ValueError("An encoder-decoder has no chat template. Received: `template`. Leave it out.")
    template = template or ChatTemplate()
    if template != ChatTemplate():
        template.render(Conversation((Message("user", ""), Message("assistant", ""))), tokenizer)
    weights, file = model_weights(model), WEIGHTS_FILE
    if bits is not None:
        weights, file = quantized.quantize_tensors(weights, bits), quantized.weights_file(bits)
    with new_directory(path, overwrite=overwrite) as folder:
        write_file(folder / _tokenizer_file(tokenizer), tokenizer.model_proto)
        documents = _documents(model, tokenizer, template=template, recipe=recipe or {})
        if bits is not None:
            documents[CONFIG_FILE]["quantization_config"] = quantized.quantization_config(bits)
        for name, content in documents.items():
            write_file(folder / name, (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode())
        write_tensors(folder / file, weights)
    ours = {TOKENIZER_FILE, JSON_TOKENIZER_FILE, TEMPLATE_FILE, WEIGHTS_FILE, *map(quantized.weights_file, quantized.BITS)}
    for other in ours - {_tokenizer_file(tokenizer), file}:
        (path / other).unlink(missing_ok=True)
    return path


def open_run(path: str | Path, *, dtype: Any = None) -> Run:
    """Opens a run directory, or a Hugging Face folder of the same form, from here or from the hub; see `load`.

    Only that there is such a folder is checked at once. What else is missing or broken is said when the part is first used.

    Args:
        path: the directory, or a model's name on the hub such as `"HuggingFaceTB/SmolLM2-135M-Instruct"`.
        dtype: Keras dtype or policy of the model, for example `"mixed_bfloat16"`.

    Raises:
        FileNotFoundError: there is no such directory, or no `config.json` in it.
        NotADirectoryError: it is a file.
        ConnectionError: the hub can't be reached, and the model isn't in its cache.
        ImportError: the package for the hub is not installed.
    """
    folder = resolve_model(path)
    _check_folder(folder)
    return Run(folder, dtype=dtype)


def load(path: str | Path, *, dtype: Any = None) -> Run:
    """Reads a run directory, or a Hugging Face folder of the same form, from here or from the hub: all of it, model included.

    The tokenizer is the one that `tokenizer_config.json` names, else `tokenizer.model`, else `tokenizer.json`. A model may have
    more ids than its `tokenizer.json`; the others have no text. A folder without a chat template gets the default one where its
    tokenizer has the markers, and none otherwise: then it writes plain text, and chatting says which markers are missing.

    Args:
        path: the directory, or a model's name on the hub such as `"HuggingFaceTB/SmolLM2-135M-Instruct"`.
        dtype: Keras dtype or policy of the model, for example `"mixed_bfloat16"`.

    Raises:
        FileNotFoundError: the directory or a file in it is missing.
        ValueError: a file is broken, the files do not fit together, or something in them is not implemented.
        ConnectionError: the hub can't be reached, and the model isn't in its cache.
        ImportError: a package for the hub or for `tokenizer.json` is not installed.
    """
    run = open_run(path, dtype=dtype)
    # Each is read here, so that errors come from `load`; the quick ones before the model, which takes seconds.
    _ = run.tokenizer, run.template, run.recipe, run.model
    return run


def load_model(path: str | Path, *, dtype: Any = None) -> "LanguageModel":
    """Reads only the model of a run directory or a Hugging Face Llama folder; the rest is as in `load`."""
    return open_run(path, dtype=dtype).model


def load_config(path: str | Path) -> ModelConfig:
    """Reads only the shape of a run directory or a Hugging Face folder; errors are those of `load`."""
    return open_run(path).config


def _documents(
    model: "LanguageModel", tokenizer: Tokenizer, *, template: ChatTemplate, recipe: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """The JSON files of a run directory, by name."""
    tokens = _tokens_of_hf(tokenizer)
    ids = {f"{hf}_token_id": tokenizer.markers.get(tokens.get(hf, "")) for hf in ROLES.values()}
    settings: dict[str, Any] = {
        **_tokenizer_class(tokenizer),
        **{f"{hf}_token": name for hf, name in tokens.items()},
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.config.context_length,
        "smolite": {"tokenizer": _tokenizer_file(tokenizer)},
    }
    if _has_markers(tokenizer, template) and not model.config.has_encoder:
        settings["chat_template"] = template.jinja()
        settings["smolite"]["chat_template"] = template.to_dict()
    return {
        CONFIG_FILE: {**model.config.to_hf(), **ids, "dtype": model.token_embedding.variable_dtype},
        "tokenizer_config.json": settings,
        "generation_config.json": ids,
        "recipe.json": {**recipe, "smolite_version": _version(), "git_commit": _git_commit()},
    }


def _tokenizer_file(tokenizer: Tokenizer) -> str:
    return JSON_TOKENIZER_FILE if isinstance(tokenizer, JsonTokenizer) else TOKENIZER_FILE


def _tokens_of_hf(tokenizer: Tokenizer) -> dict[str, str]:
    """The tokens that Hugging Face calls `bos`, `eos`, `pad` and `unk`, as far as there are."""
    if isinstance(tokenizer, JsonTokenizer):
        return {ROLES[role]: token for role, token in tokenizer.roles.items()}
    known = {*tokenizer.markers, "<unk>"}
    return {hf: name for hf, name in _MARKER_OF_HF.items() if name in known}


def _tokenizer_class(tokenizer: Tokenizer) -> dict[str, Any]:
    """What makes transformers encode as we do."""
    if isinstance(tokenizer, JsonTokenizer):
        return {"tokenizer_class": "PreTrainedTokenizerFast"}
    # No token of its own: the template has the markers.
    # Without `legacy` transformers puts no space after a marker, where SentencePiece does.
    return {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False, "add_eos_token": False, "legacy": True}


def _has_markers(tokenizer: Tokenizer, template: ChatTemplate) -> bool:
    return {*tokenizer.markers, "<unk>"}.issuperset(template.markers)


def _version() -> str:
    return getattr(smolite, "__version__", "unknown")


def _git_commit() -> str | None:
    """The commit of the working directory, ending in `-dirty` where files differ; None outside of git."""
    # `--exclude=*`: without tags, which would stand in place of the commit.
    # `--exclude=*` leaves out tags, which would take the commit's place.
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _check_vocabulary(config: ModelConfig, tokenizer: Tokenizer, *, where: str) -> None:
    if config.vocab_size != tokenizer.vocab_size:
        raise ValueError(
            f"The tokenizer must have as many pieces as the `vocab_size` of {where}, {config.vocab_size}. "
            f"Received: {tokenizer.vocab_size}. Use the tokenizer that the model was trained with."
        )


def _check_folder(folder: Path) -> None:
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


def _read_tokenizer(folder: Path, settings: Mapping[str, Any], *, vocab_size: int) -> Tokenizer:
    there = [name for name in (TOKENIZER_FILE, JSON_TOKENIZER_FILE) if (folder / name).is_file()]
    name = settings.get("smolite", {}).get("tokenizer") or next(iter(there), TOKENIZER_FILE)
    if name not in there:
        kind = "byte-level" if name == JSON_TOKENIZER_FILE else "SentencePiece"
        raise FileNotFoundError(
            f"{folder} must hold a {kind} {name}. Received: {' '.join(there) or 'none'}. Copy the file into the folder, or "
            "read only the model with `load_model`."
        )
    if name == TOKENIZER_FILE:
        return Tokenizer(folder / name)
    tokens = {hf: settings.get(f"{hf}_token") for hf in ROLES.values()}
    named = {hf: token["content"] if isinstance(token, dict) else token for hf, token in tokens.items()}
    roles = {role: token for role, hf in ROLES.items() if (token := named[hf]) is not None}
    return JsonTokenizer(folder / name, roles=roles, vocab_size=vocab_size)


def _read_template(folder: Path, settings: Mapping[str, Any], tokenizer: Tokenizer) -> ChatTemplate | None:
    """The template that `save` wrote, or one that does what the folder's does, or the default one."""
    fields = settings.get("smolite", {}).get("chat_template")
    if fields is not None:
        return ChatTemplate.from_dict(fields)
    file, jinja = folder / TEMPLATE_FILE, settings.get("chat_template")
    if isinstance(jinja, list):  # several by name, in older folders
        jinja = {each["name"]: each["template"] for each in jinja}.get("default")
    jinja = file.read_text("utf-8") if file.is_file() else jinja
    if jinja is None:
        return ChatTemplate() if _has_markers(tokenizer, ChatTemplate()) else None
    tokens = {key: value for key, value in settings.items() if key.endswith("_token") and isinstance(value, str)}
    if (template := known_template(jinja, tokens)) is None:
        raise ValueError(
            f"{file if file.is_file() else folder / 'tokenizer_config.json'}: `chat_template` must be one that smolite wrote. "
            f"Received: {jinja!r:.60}, which is not SmolLM's ChatML either. Read only the model with `load_model`, and make a "
            "`ChatTemplate` of its prefixes and suffixes."
        )
    return template


def _read_json(path: Path, *, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    if missing is not None and not path.exists():
        return missing
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be JSON. Received: {error}. Copy or save it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object. Received: {content!r:.40}. Save it again.")
    return content
