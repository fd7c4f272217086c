"""`MANIFEST.json` of an export folder: what each file is, what it was made from, and what its verification found.

`{"form": 1, "artifacts": {NAME: …}, "beside": {NAME: …}}`. An artifact has

- `format`, `quantize`, `prefill_lengths`, `cache_length`: what was asked for; `null` where there is no such thing, as lengths
  of a prompt where the cache grows; `windows` and `drafts` of a .tflite file;
- `bytes`, `sha256`: of the file. Of a folder, the sum of its files and the hash of what `sha256sum` prints for them in the
  order of their paths: `find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum`;
- `made_from`: name → sha256 of `config.json` and the weights of the run;
- `versions`: of smolite, Python and the packages it was made with;
- `verified`: the figures of its row in `verify.json` when it was made.

`beside` has `bytes` and `sha256` of the tokenizer and `chat.json`. `export` writes the manifest and what it describes together,
and keeps what it says of other artifacts that are still there; `verify` only reads it.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from smolite.checkpoint import CONFIG_FILE, JSON_TOKENIZER_FILE, TOKENIZER_FILE
from smolite.exporters.delivery.client_files import CHAT_FILE
from smolite.exporters.delivery.report import Row, installed_versions
from smolite.exporters.request import ExportRequest
from smolite.files import write_file

MANIFEST_FILE = "MANIFEST.json"
FORM = 1
_BESIDE = (TOKENIZER_FILE, JSON_TOKENIZER_FILE, CHAT_FILE)


def write_manifest(new: Path, old: Path, *, row: Row, request: ExportRequest) -> Path:
    """Writes the manifest of a folder as it is going to be.

    Args:
        new: the folder with the new files, the manifest among them.
        old: the folder that they are going to be moved to.
        row: the verification of the new artifact, which names it.
        request: what was asked for, and of which run.

    Raises:
        ValueError: the old folder has a manifest that cannot be read.
    """
    before, name = read_manifest(old), row.artifact
    figures = {key: value for key, value in asdict(row).items() if value is not None}
    verified = {key: value for key, value in figures.items() if key not in ("artifact", "num_bytes", "problems")}
    origin = {"made_from": source_hashes(request.run), "versions": installed_versions(), "verified": verified}
    # What was deleted by hand is forgotten; what is still there keeps its entry, as its bytes are the same.
    artifacts = {key: value for key, value in before["artifacts"].items() if (old / key).exists()}
    artifacts[name] = {**request.described(), **_fingerprint(new / name), **origin}
    beside = {key: value for key, value in before["beside"].items() if (old / key).exists()}
    beside |= {key: _fingerprint(new / key) for key in _BESIDE if (new / key).exists()}
    content = {"form": FORM, "artifacts": artifacts, "beside": beside}
    return write_file(new / MANIFEST_FILE, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder; an empty one where there is none.

    Raises:
        ValueError: it is not a manifest of this form.
    """
    path = folder / MANIFEST_FILE
    if not path.exists():
        return {"form": FORM, "artifacts": {}, "beside": {}}
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["form"] != FORM or not all(isinstance(content[key], dict) for key in ("artifacts", "beside")):
            raise ValueError(f"form {content['form']}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"A manifest of form {FORM} was expected. Received: {path}, {error!r}. Delete it, and export again."
        ) from error
    found: dict[str, Any] = content
    return found


def manifest_problems(folder: Path, run: Path) -> dict[str, list[str]]:
    """What is not as the manifest says, in words, by the name of the file; what it cannot say, by its own name.

    Args:
        folder: the export folder.
        run: the run as it is now.
    """
    problems: dict[str, list[str]] = {MANIFEST_FILE: []}
    try:
        manifest = read_manifest(folder)
        artifacts = manifest["artifacts"]
        for name, entry in {**artifacts, **manifest["beside"]}.items():
            if not (folder / name).exists():
                problems[MANIFEST_FILE].append(f"{name} is not there")
            elif sha256_of(folder / name) != entry["sha256"]:
                problems[name] = [f"its bytes are not those that were exported, by the sha256 in {MANIFEST_FILE}"]
        for name, changed in stale_artifacts(folder, run, [name for name in artifacts if (folder / name).exists()]).items():
            stale = f"it is stale: {', '.join(changed)} of the run changed after it was made; export it again"
            problems.setdefault(name, []).append(stale)
    except (ValueError, KeyError, TypeError) as error:
        problems[MANIFEST_FILE].append(f"it cannot be read: {error}")
    return problems


def stale_artifacts(folder: Path, run: Path, names: Iterable[str]) -> dict[str, list[str]]:
    """Those of `names` that the run has changed after, by the manifest, and the files of the run that have.

    Args:
        folder: the export folder.
        run: the run as it is now.
        names: artifacts; one that the manifest doesn't know is not stale.

    Raises:
        ValueError: the manifest cannot be read.
    """
    artifacts = read_manifest(folder)["artifacts"]
    known = {name: artifacts[name]["made_from"] for name in names if name in artifacts}
    # Hashing the weights of a large run takes seconds, which a file that nobody described is not worth.
    now = source_hashes(run) if known else {}
    changed = {name: sorted(file for file in {*was, *now} if was.get(file) != now.get(file)) for name, was in known.items()}
    return {name: files for name, files in changed.items() if files}


def source_hashes(run: Path) -> dict[str, str]:
    """Name → sha256 of the config and of every file of weights in a run."""
    return {path.name: sha256_of(path) for path in [run / CONFIG_FILE, *sorted(run.glob("*.safetensors"))]}


def sha256_of(path: Path) -> str:
    """The hash of a file, or of a folder as the module says, in hexadecimal."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    # As `sha256sum` prints it, so that a folder can be checked without Python.
    listing = "".join(f"{sha256_of(path / name)}  {name}\n" for name in names)
    return hashlib.sha256(listing.encode()).hexdigest()


def _fingerprint(path: Path) -> dict[str, Any]:
    files = path.rglob("*") if path.is_dir() else [path]
    return {"bytes": sum(file.stat().st_size for file in files if file.is_file()), "sha256": sha256_of(path)}
