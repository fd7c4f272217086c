"""Referees: files written byte by byte, and the real hub code on a hand-made cache and a local server."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from smolite.data.sources import read_lines, read_objects, read_texts, resolve_dataset

ROOT = Path(__file__).parents[2]
NAME, FILE = "Yuchan5386/Smolwrite-dataset", "VeTrans.jsonl"
LINE = '{"conversations": [{"from": "human", "value": "안녕"}, {"from": "gpt", "value": "반가워요"}]}\n'


def written(folder, content, *, name="file.jsonl"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def resolved_elsewhere(name, **environment):
    """Run `resolve_dataset` in a process of its own, since the hub reads its environment once."""
    command = f"from smolite.data.sources import resolve_dataset; print(resolve_dataset({name!r}))"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        **{key: str(value) for key, value in environment.items()},
    }
    return subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True)


def test_an_existing_path_is_itself(tmp_path):
    path = written(tmp_path, LINE)
    assert resolve_dataset(path) == path
    assert resolve_dataset(str(path)) == path


def test_a_folder_stands_for_its_file(tmp_path):
    only = written(tmp_path, LINE, name="any.jsonl")
    assert resolve_dataset(tmp_path) == only
    smolwrite = written(tmp_path, LINE, name=FILE)
    assert resolve_dataset(tmp_path) == smolwrite


def test_a_folder_without_one_clear_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"exactly one \.jsonl file. Received: .* with none"):
        resolve_dataset(tmp_path)
    written(tmp_path, LINE, name="a.jsonl")
    written(tmp_path, LINE, name="b.jsonl")
    with pytest.raises(FileNotFoundError, match=r"with a\.jsonl, b\.jsonl. Give the path"):
        resolve_dataset(tmp_path)


@pytest.mark.parametrize("name", ["missing.jsonl", "data/missing.jsonl", "a/b/c", "./somewhere", ""])
def test_neither_path_nor_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name:
        with pytest.raises(FileNotFoundError, match="which is neither. Check the path, or write `owner/name:file"):
            resolve_dataset(name)
    else:
        with pytest.raises(FileNotFoundError, match="with none"):
            resolve_dataset(name)


def test_an_unknown_hub_name_needs_its_file():
    with pytest.raises(ValueError, match="Write `someone/something:file.jsonl`"):
        resolve_dataset("someone/something")


def test_hub_package_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r'pip install "smolite\[hf\]"'):
        resolve_dataset(NAME)


def hub_cache(folder):
    store = folder / "datasets--Yuchan5386--Smolwrite-dataset"
    snapshot = store / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (store / "refs").mkdir()
    (store / "refs" / "main").write_text("a" * 40)
    return written(snapshot, LINE, name=FILE)


@pytest.mark.parametrize("name", [NAME, f"{NAME}:{FILE}"])
def test_the_smolwrite_set_by_name_from_the_hub_cache(name, tmp_path):
    expected = hub_cache(tmp_path)
    result = resolved_elsewhere(name, HF_HUB_CACHE=tmp_path, HF_HUB_OFFLINE=1)
    assert result.stdout.strip() == str(expected), result.stderr


def test_the_hub_cannot_be_reached(tmp_path):
    result = resolved_elsewhere(NAME, HF_HUB_CACHE=tmp_path, HF_HUB_OFFLINE=1)
    assert "ConnectionError: The Hugging Face hub must be reachable to fetch 'VeTrans.jsonl'" in result.stderr
    assert f"download VeTrans.jsonl from https://huggingface.co/datasets/{NAME} and give" in result.stderr


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self, *, body=b""):
        found = self.path == f"/datasets/{NAME}/resolve/main/{FILE}"
        self.send_response(200 if found else 404)
        headers = {"X-Repo-Commit": "b" * 40, "ETag": '"c0ffee"', "Content-Length": str(len(LINE.encode()))}
        for key, value in (headers if found else {"X-Error-Code": "RepoNotFound"}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body if found else b"")

    def do_GET(self):
        self.do_HEAD(body=LINE.encode())

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub():
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_fetched_from_a_hub_on_this_machine(hub, tmp_path):
    result = resolved_elsewhere(NAME, HF_ENDPOINT=hub, HF_HUB_CACHE=tmp_path, HF_HUB_OFFLINE=0)
    assert Path(result.stdout.strip()).read_text(encoding="utf-8") == LINE, result.stderr
    missing = resolved_elsewhere("nobody/nothing:x.jsonl", HF_ENDPOINT=hub, HF_HUB_CACHE=tmp_path, HF_HUB_OFFLINE=0)
    assert "FileNotFoundError: The data set must exist on the Hugging Face hub." in missing.stderr


def test_lines_with_numbers(tmp_path):
    path = written(tmp_path, b"\xef\xbb\xbf\xea\xb0\x80\r\n\n  \n b \xe2\x80\xa8c\n")
    assert list(read_lines(path)) == [(1, "가"), (4, "b \u2028c")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "안녕하세요".encode("cp949"),
            r"file.jsonl:1: must be UTF-8.*look like CP949.*iconv -f CP949 -t UTF-8",
        ),
        ("a\n안녕하세요 반가워요".encode("cp949"), r"file.jsonl:2: .*read_text\('CP949'\), 'utf-8'\)"),
        ("안녕".encode("utf-16"), r"file.jsonl:1: .*look like UTF-16"),
        (b"ok\n\x1f\x8b\xff\xff", r"file.jsonl:2: must be UTF-8. Received the bytes 8b ff ff. Save the file"),
        (b"\n  \n", "Received: an empty file"),
        (b"", "Received: an empty file"),
    ],
)
def test_files_that_are_no_text(content, message, tmp_path):
    path = written(tmp_path, content)
    for read in (lambda: list(read_lines(path)), lambda: read_texts(path)):
        with pytest.raises(ValueError, match=message):
            read()


def test_the_advice_for_cp949_works(tmp_path):
    path = written(tmp_path, LINE.encode("cp949"))
    with pytest.raises(ValueError, match="CP949") as caught:
        read_texts(path)
    advice = str(caught.value)
    exec(advice[advice.index("in Python: ") + len("in Python: ") :].rstrip("."), {"Path": Path})
    assert (tmp_path / "utf8-file.jsonl").read_text(encoding="utf-8") == LINE


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="must exist to be read. Received: .*none.jsonl"):
        read_texts(tmp_path / "none.jsonl")


def test_objects_of_lines_and_of_an_array_have_the_same_places(tmp_path):
    lines = written(tmp_path, '{"n": 1}\n\n{"n": [2, {}]}\n', name="a.jsonl")
    array = written(tmp_path, ' [{"n": 1},\n\n{"n": [2, {}]}\n]', name="a.json")
    for path in (lines, array):
        expected = [({"n": 1}, f"{path}:1"), ({"n": [2, {}]}, f"{path}:3")]
        assert read_objects(path, lambda record, where: (record, where)) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"text": "a"}\n{"text": \n',
            r"file.jsonl:2: must be valid JSON. Received: '\{\"text\":' \(Expecting value",
        ),
        ('[{"text": "a"},\n{"text" "b"}]', "file.jsonl:2: must be valid JSON"),
        ('{"text": "a"}\n"text"\n', "file.jsonl:2: must be a JSON object .* Received: str"),
        ("[1]", "file.jsonl:1: must be a JSON object .* Received: int"),
        ("[]", "at least one JSON object. Received: an empty array"),
        ("[" * 100_000, "file.jsonl:1: must be valid JSON"),
        (f'{{"text": {"9" * 5000}}}', "file.jsonl:1: must be valid JSON"),
        ('{"text": 3}', r"file.jsonl:1: `text` must be a string. Received: 3 \(int\)"),
        ('{"title": "a"}', r"file.jsonl:1: `text` must be a string. Received: None"),
        ('{"text": "\\ud83d"}', r"file.jsonl:1: `text` must be whole characters"),
        ('{"text": " "}', "only empty texts"),
        ("x\n" * 9, r"file.jsonl:5: [^\n]*\n… and 4 more problems"),
    ],
)
def test_bad_objects(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_texts(written(tmp_path, content))


def test_texts(tmp_path):
    plain = written(tmp_path, "첫째 글\n\n 둘째 글 \r\n", name="file.txt")
    assert read_texts(plain) == ["첫째 글", "둘째 글"]
    objects = [{"text": "줄\r\n바꿈 ", "id": 1}, {"text": ""}, {"text": "둘"}]
    lines = written(tmp_path, "\n".join(map(json.dumps, objects)))
    assert read_texts(lines) == ["줄\n바꿈", "둘"]
