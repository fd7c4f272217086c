"""Models by name: a folder here, or one of the Hugging Face hub, fetched once and kept in its cache."""

import re
from pathlib import Path

FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
    "model_int?.safetensors",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "recipe.json",
)
"""What is fetched of a folder on the hub; other formats of the same weights are not."""

_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def resolve_model(name_or_path: str | Path) -> Path:
    """Find the folder behind a path or a model's name on the hub.

    An existing path is itself, and so is a `Path` object. Another text such as `"HuggingFaceTB/SmolLM2-135M-Instruct"` is a
    name on the Hugging Face hub. Its files are fetched with a progress bar and kept in the hub's cache; without a network
    they come from there.

    Args:
        name_or_path: a folder, or `"owner/name"`.

    Returns:
        The folder; that a path exists is not checked.

    Raises:
        FileNotFoundError: neither a folder here nor a public model on the hub.
        ImportError: `huggingface_hub` is not installed.
        ConnectionError: the hub can't be reached, and the whole model isn't in its cache.
    """
    path = Path(name_or_path).expanduser()
    if isinstance(name_or_path, Path) or path.exists() or not _HUB_NAME.fullmatch(name_or_path):
        return path
    return _download(name_or_path)


def export_folder(folder: Path) -> Path:
    """Where the exported files of a run lie: `export` inside it.

    A folder in the hub's cache is not ours to write to. Files of `owner/name` lie in `name/export`, in the working directory.

    Args:
        folder: what `resolve_model` gave.
    """
    owner = folder.parent.parent.name
    if folder.parent.name == "snapshots" and owner.startswith("models--"):
        folder = Path(owner.split("--", 2)[-1])
    return folder / "export"


def _download(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError as error:
        raise ImportError(
            f"There is no folder {name!r} here, and fetching it from the Hugging Face hub needs the package `huggingface_hub`. "
            f'Check the path, or install it with `pip install "smolite[hf]"`.'
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"The model must be a folder here or a public one on the Hugging Face hub. Received: {name!r}, which is neither. "
            f"Check the name; where https://huggingface.co/{name} asks to accept a licence, do so and run `hf auth login`."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, ConnectionError) as error:
        raise ConnectionError(
            f"The Hugging Face hub must be reachable to fetch {name!r}, of which there is no folder here. Received: {error} "
            f"Check the path, try again when online, or copy the files of https://huggingface.co/{name} and give their folder."
        ) from error
