"""Where text comes from: a path or a name on the hub, the lines of a file, the JSON objects in it."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

Record = TypeVar("Record")

SAMPLE_FOLDER = Path(__file__).parent / "sample"
SAMPLE_FILES = {
    "sample": "train.jsonl",
    "sample-heldout": "heldout.jsonl",
    "sample-pairs": "pairs.ko-en.jsonl",
    "sample-pairs-heldout": "pairs.ko-en.heldout.jsonl",
}
HUB_FILES = {"Yuchan5386/Smolwrite-dataset": "VeTrans.jsonl"}
_HUB_NAME = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(:(?P<file>[^:]+))?")
_DATA_SUFFIXES = (".jsonl", ".json", ".txt")
_PROBLEMS_SHOWN = 5


def resolve_dataset(name_or_path: str | Path) -> Path:
    """Find the file behind a path or a data set's name.

    `"sample"` and `"sample-heldout"` are the two parts of the bundled dialogues, `"sample-pairs"` and
    `"sample-pairs-heldout"` those of the bundled Korean–English pairs, unless files of these names exist.
    A file is itself. A folder stands for its `VeTrans.jsonl`, or else for the only `.jsonl` in it.
    `"owner/name:file.jsonl"` is fetched from the Hugging Face hub (and kept in its cache); for a name in
    `HUB_FILES`, such as `"Yuchan5386/Smolwrite-dataset"`, the file may be left out.

    Args:
        name_or_path: a file, a folder, or `"owner/name"` / `"owner/name:file.jsonl"`.

    Returns:
        The path of one existing file.

    Raises:
        FileNotFoundError: neither a path nor a hub name; a folder without one clear file; not on the hub.
        ValueError: a hub name that needs a file name.
        ImportError: `huggingface_hub` is not installed.
        ConnectionError: the hub can't be reached and the file isn't in its cache.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return _file_in_folder(path)
    if path.exists():
        return path
    if str(name_or_path) in SAMPLE_FILES:
        return SAMPLE_FOLDER / SAMPLE_FILES[str(name_or_path)]
    match = _HUB_NAME.fullmatch(str(name_or_path))
    if match is None or (not match["file"] and str(name_or_path).endswith(_DATA_SUFFIXES)):
        raise FileNotFoundError(
            f"The data set must be an existing file or folder, or a name on the Hugging Face hub. Received: "
            f"{str(name_or_path)!r}, which is neither. Check the path, or write `owner/name:file.jsonl`."
        )
    file = match["file"] or HUB_FILES.get(match["name"])
    if file is None:
        raise ValueError(
            f"A hub data set must be given with its file. Received: {str(name_or_path)!r}. "
            f"Write `{match['name']}:file.jsonl` with the name of the file that you want."
        )
    return _download(match["name"], file)


def _file_in_folder(folder: Path) -> Path:
    known = [folder / file for file in HUB_FILES.values() if (folder / file).is_file()]
    paths = known or sorted(folder.glob("*.jsonl"))
    if len(paths) != 1:
        names = ", ".join(path.name for path in paths) or "none"
        raise FileNotFoundError(
            f"A data folder must hold VeTrans.jsonl or exactly one .jsonl file. Received: {folder} with "
            f"{names}. Give the path of the file itself."
        )
    return paths[0]


def _download(name: str, file: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
        )
    except ImportError as error:
        raise ImportError(
            f"Fetching {name!r} from the Hugging Face hub needs the package `huggingface_hub`. "
            f'Install it with `pip install "smolite[hf]"`, or give the path of a local file.'
        ) from error
    try:
        return Path(hf_hub_download(name, file, repo_type="dataset"))
    except LocalEntryNotFoundError as error:
        raise _unreachable(name, file, reason=error) from error
    except (RepositoryNotFoundError, EntryNotFoundError) as error:
        raise FileNotFoundError(
            f"The data set must exist on the Hugging Face hub. Received: {name!r} with file {file!r}, which "
            f"is not there or not public. Check both names, or give the path of a local file."
        ) from error
    except (HfHubHTTPError, ConnectionError) as error:
        raise _unreachable(name, file, reason=error) from error


def _unreachable(name: str, file: str, *, reason: Exception) -> ConnectionError:
    return ConnectionError(
        f"The Hugging Face hub must be reachable to fetch {file!r} of {name!r}. Received: {reason} Try again "
        f"when online, or download {file} from https://huggingface.co/datasets/{name} and give its path."
    )


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield the non-blank lines of a UTF-8 file with their numbers, counted from 1.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line isn't UTF-8 (with a guess at the encoding), or the file has no text at all.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"A text file must exist to be read. Received: {path}. Check the path.")
    empty = True
    # As bytes, line by line: a file of many gigabytes is never in memory, and a line that is no UTF-8 has a number.
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            line = _decode(raw, path, first_line=number).strip()
            if line:
                empty = False
                yield number, line
    if empty:
        raise ValueError(f"{path}: must hold at least one line of text. Received: an empty file.")


def _decode(raw: bytes, path: Path, *, first_line: int) -> str:
    try:
        # Windows puts a mark before the first line, which JSON would refuse.
        return raw.decode("utf-8-sig" if first_line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        number = first_line + raw.count(b"\n", 0, error.start)
        received = raw[error.start : error.start + 4].hex(" ")
    guess, new = _guess_encoding(raw), path.with_name(f"utf8-{path.name}")
    advice = "Save the file as UTF-8."
    if guess:
        advice = (
            f"They look like {guess}. Convert the file with `iconv -f {guess} -t UTF-8 {path} > {new}`, or "
            f"in Python: Path({str(new)!r}).write_text(Path({str(path)!r}).read_text({guess!r}), 'utf-8')."
        )
    raise ValueError(f"{path}:{number}: must be UTF-8. Received the bytes {received}. {advice}")


def _guess_encoding(raw: bytes) -> str | None:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    try:
        # CP949 decodes almost any pair of bytes, so that only Hangul in the outcome makes it likely.
        text = raw.decode("cp949")
    except UnicodeDecodeError:
        return None
    return "CP949" if any("가" <= character <= "힣" for character in text) else None


def read_objects(path: str | Path, convert: Callable[[dict[str, Any], str], Record]) -> list[Record]:
    """Read the JSON objects of a file: one a line (JSONL), or one array of them.

    Args:
        path: the file, UTF-8.
        convert: makes a record of an object and where it stands (`"file:line"`); raises ValueError to refuse it.

    Returns:
        The records in the file's order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the first few bad lines, each with file and line number, and how many more there are.
    """
    records, problems = [], []
    for where, text in _json_texts(Path(path)):
        try:
            records.append(convert(_parse_object(text, where), where))
        except ValueError as problem:
            problems.append(str(problem))
    if not records and not problems:
        raise ValueError(f"{path}: must hold at least one JSON object. Received: an empty array.")
    if problems:
        more = len(problems) - _PROBLEMS_SHOWN
        rest = [f"… and {more:,} more problems in this file."] if more > 0 else []
        raise ValueError("\n".join(problems[:_PROBLEMS_SHOWN] + rest))
    return records


def _json_texts(path: Path) -> Iterator[tuple[str, str]]:
    lines = read_lines(path)
    number, first = next(lines)
    if first.startswith("["):
        yield from _array_texts(path)
        return
    yield f"{path}:{number}", first
    yield from ((f"{path}:{number}", line) for number, line in lines)


def _array_texts(path: Path) -> Iterator[tuple[str, str]]:
    text = _decode(path.read_bytes(), path, first_line=1)
    # The whole array first: its error names the line, and below nothing can fail any more.
    _parse(text, path, first_line=1)
    decoder, start, counted, line = json.JSONDecoder(), text.index("[") + 1, 0, 1
    while text[start := _after_gap(text, start)] != "]":
        line, counted = line + text.count("\n", counted, start), start
        end = decoder.raw_decode(text, start)[1]
        yield f"{path}:{line}", text[start:end]
        start = end


def _after_gap(text: str, start: int) -> int:
    while text[start] in ", \t\r\n":
        start += 1
    return start


def _parse_object(text: str, where: str) -> dict[str, Any]:
    path, _, line = where.rpartition(":")
    value = _parse(text, path, first_line=int(line))
    if not isinstance(value, dict):
        raise ValueError(
            f'{where}: must be a JSON object such as {{"key": "value"}}. Received: {type(value).__name__} '
            f"{text[:40]!r}. Write one object a line, or one array of objects."
        )
    return value


def _parse(text: str, path: str | Path, *, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line, reason = first_line + error.lineno - 1, f"{error.msg} at character {error.colno}"
    # A number of too many digits, or brackets thousands deep: broken lines, not broken programs.
    except (ValueError, RecursionError) as error:
        line, reason = first_line, str(error)
    raise ValueError(f"{path}:{line}: must be valid JSON. Received: {text[:40]!r} ({reason}). Mend or delete this line.")


def read_texts(path: str | Path) -> list[str]:
    """Read documents of plain text for pretraining.

    A `.jsonl` or `.json` file holds objects with a `"text"` (other keys are left alone); in any other file
    every line is a document. Blank documents are skipped and outer whitespace is stripped.

    Args:
        path: the file, UTF-8.

    Returns:
        The documents, in the file's order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: broken JSON, an object without a string `"text"`, not UTF-8, or no text at all.
    """
    path = Path(path)
    if path.suffix not in (".jsonl", ".json"):
        return [line for _, line in read_lines(path)]
    texts = [text for text in read_objects(path, _text_of) if text]
    if not texts:
        raise ValueError(f"{path}: must hold at least one line of text. Received: only empty texts.")
    return texts


def _text_of(record: dict[str, Any], where: str) -> str:
    return checked_text(record.get("text"), f"{where}: `text`")


def checked_text(value: Any, where: str) -> str:
    """Return a text with newlines as line ends and without outer whitespace.

    Raises:
        ValueError: not a string, or one that can't be written as UTF-8.
    """
    if not isinstance(value, str):
        raise ValueError(
            f"{where} must be a string. Received: {value!r:.60} ({type(value).__name__}). Write the text in quotes."
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where} must be whole characters. Received: {value[error.start]!r}, one half of a surrogate "
            f"pair. Write the character itself."
        ) from error
    # One form of line end, as the tokenizer has one piece for it.
    return value.replace("\r\n", "\n").strip()
