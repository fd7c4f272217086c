"""The settings of a verb in a file: YAML or JSON, or the `recipe.json` of a run, which repeats its training."""

import json
from pathlib import Path
from typing import Any


def read_config(path: str | Path, verb: str) -> dict[str, Any]:
    """The settings that a file gives to a verb, by the names of its flags.

    A mapping with `verb` is the `recipe.json` of a run. Its settings are what stands in `options` and, beside it, `dataset`,
    `validation`, `start`, `preset` and `tokenizer`; all else tells what came of them (the figures of every epoch, versions,
    the backend) and is left out, and so are texts that are empty.

    Args:
        path: the file. What decides is its content, not its suffix.
        verb: the verb that is to run.

    Returns:
        Name, with underscores → value.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no mapping of names to values, or the recipe of another verb.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`--config` must name a file of settings. Received: {path}. Give one in YAML or JSON.")
    content = _parsed(path)
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        kind = type(content).__name__
        raise ValueError(f"{path} must hold names and values. Received: a {kind}. Write lines such as `epochs: 3`.")
    if "verb" not in content:
        return {name.replace("-", "_"): value for name, value in content.items()}
    if content["verb"] != verb:
        raise ValueError(f"{path} must be the recipe of `{verb}`. Received: one of `{content['verb']}`. Run that verb with it.")
    # Named one by one, since a recipe may hold anything else: who saves a run adds what he likes.
    beside = {name: content.get(name) for name in ("dataset", "validation", "start", "preset", "tokenizer")}
    return {name: value for name, value in beside.items() if value} | content.get("options", {})


def _parsed(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    try:
        # YAML 1.1 would take the 1e-3 of a JSON file for a text.
        return json.loads(text)
    except ValueError:
        import yaml

        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{path} must be YAML or JSON. Received: {error}. Write lines such as `epochs: 3`.") from error
