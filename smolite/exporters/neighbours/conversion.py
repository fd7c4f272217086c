"""From one form of a model to another: run directories, Hugging Face folders, keras-hub presets, and the first Smolite."""

import json
from pathlib import Path
from typing import Any

from smolite import checkpoint
from smolite.checkpoint import read_smolite1
from smolite.exporters.neighbours.keras_hub import from_keras_hub, library, to_keras_hub, tokenizer_of
from smolite.files import new_directory
from smolite.text import Tokenizer

FORMS = ("run", "keras-hub")
_WEIGHTS_SUFFIX = ".weights.h5"


def convert(
    source: str | Path,
    out: str | Path,
    *,
    to: str = "run",
    tokenizer: str | Path | None = None,
    context_length: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a model in another form, with the same weights.

    Args:
        source: a run directory, a Hugging Face folder or a name on the hub; a preset folder of keras-hub; or the
            `.weights.h5` of a first Smolite.
        out: the folder to write.
        to: `"run"`, which is a Hugging Face folder too, or `"keras-hub"`, which `keras_hub.models.CausalLM.from_preset` opens.
        tokenizer: a `.model` file, for sources that have none.
        context_length: for sources that don't record it. Default: that of the first Smolite, or of keras-hub's preprocessor.
        overwrite: whether what is in `out` may be replaced.

    Returns:
        `out`.

    Raises:
        FileExistsError: `out` exists, and `overwrite` is False.
        FileNotFoundError: the source or a file in it is missing.
        ImportError: keras-hub is needed and not installed.
        ValueError: the source is of no such form, or the other form has no place for what it is.
    """
    out = Path(out)
    if to not in FORMS:
        raise ValueError(
            f"A model is converted to {' or '.join(FORMS)}. Received: {to!r}. Other files are made by `smolite export`."
        )
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} must not exist yet. Choose another folder, or allow to overwrite it.")
    run = _read(source, tokenizer, context_length)
    if to == "run":
        recipe = run.recipe or {"verb": "convert", "source": str(source)}
        return checkpoint.save(out, run.model, run.tokenizer, template=run.template, recipe=recipe, overwrite=overwrite)
    theirs = to_keras_hub(run)
    with new_directory(out, overwrite=overwrite) as folder:
        theirs.save_to_preset(str(folder))
    return out


def _read(source: str | Path, tokenizer: str | Path | None, context_length: int | None) -> checkpoint.Run:
    path = Path(source)
    if str(source).endswith(_WEIGHTS_SUFFIX):
        lengths = {} if context_length is None else {"context_length": context_length}
        return _with_tokenizer(read_smolite1(path, **lengths), tokenizer, path)
    if _is_preset(path):
        theirs: Any = library().models.CausalLM.from_preset(str(path))
        own = tokenizer_of(theirs)
        length = context_length or getattr(theirs.preprocessor, "sequence_length", None) or 2048
        model = from_keras_hub(theirs, context_length=length)
        return _with_tokenizer(model, tokenizer, path) if own is None else _unsaved(model, own, path)
    return checkpoint.load(source)


def _with_tokenizer(model: Any, tokenizer: str | Path | None, source: Path) -> checkpoint.Run:
    if tokenizer is None:
        raise ValueError(
            f"{source} has no tokenizer. Received: no `tokenizer` either. Give the .model file it was trained with."
        )
    return _unsaved(model, Tokenizer(tokenizer), source)


def _unsaved(model: Any, tokenizer: Tokenizer, source: Path) -> checkpoint.Run:
    return checkpoint.Run.from_parts(source, model=model, tokenizer=tokenizer)


def _is_preset(path: Path) -> bool:
    """Whether a folder is a preset of keras-hub: its config.json names a class, where Hugging Face's has a model_type."""
    config = path / "config.json"
    try:
        return config.is_file() and "registered_name" in json.loads(config.read_text("utf-8"))
    except ValueError:
        return False
