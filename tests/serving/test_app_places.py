"""The app elsewhere: as a Space on the hub, and in a container. Each server starts in a clean folder."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from served import CLI, ROOT, fetch, free_port, hostile_run, served

SPACE = ROOT / "export" / "space"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return hostile_run(tmp_path_factory)


def labels(address):
    return {part["props"].get("label") for part in json.loads(fetch(f"{address}/config"))["components"]}


def say(address, name, *values):
    """Every state that an endpoint of the app sends."""
    call = json.loads(fetch(f"{address}/gradio_api/call/{name}", {"data": list(values)}))["event_id"]
    sent = fetch(f"{address}/gradio_api/call/{name}/{call}")
    return [json.loads(line[6:]) for line in sent.splitlines() if line.startswith("data: ")]


@pytest.mark.long
def test_the_space_runs_as_it_is(run, tmp_path):
    """The three files, the library and a model in a folder."""
    shutil.copytree(SPACE, tmp_path, dirs_exist_ok=True)
    shutil.copytree(ROOT / "smolite", tmp_path / "smolite")
    shutil.copytree(run, tmp_path / "model")
    port = free_port()
    known = {"port": port, "GRADIO_SERVER_PORT": port, "PYTHONPATH": ""}
    command = [sys.executable, "app.py"]
    with served(command, tmp_path, **known, SMOLITE_MODEL="model") as address:
        states = say(address, "chat", None, "안녕!", "model_int8.tflite", 0.1, 60, 1, 1.0, 0)
        text = states[-1][1][-1]["content"][0]["text"]
        assert text.startswith("&lt;script&gt;") and re.match(r"\d+ tokens · ", states[-1][-1])
        assert len(states) > 1


@pytest.mark.slow
def test_without_a_model_the_space_says_so(tmp_path):
    code = "import json, runpy, sys; build = runpy.run_path(sys.argv[1])['build_page']\n"
    code += "print(json.dumps([build(model).get_config_file() for model in sys.argv[2:]], ensure_ascii=False))"
    words = [sys.executable, "-c", code, str(SPACE / "app.py"), "", "nothing"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    pages = json.loads(done.stdout.splitlines()[-1])
    for page, said in zip(pages, ("SMOLITE_MODEL must name a model", "must exist. Received: nothing."), strict=True):
        words = json.dumps(page["components"], ensure_ascii=False)
        assert "There is no model to talk with" in words and said in words and not page["dependencies"]


def test_the_space_asks_for_what_the_package_asks_for():
    """The pins are those of pyproject.toml; Gradio and Python are ones that they allow."""
    lines = (SPACE / "requirements.txt").read_text("utf-8").splitlines()
    asked = [line for line in lines if not line.startswith("#")]
    extras = PROJECT["optional-dependencies"]
    known = [*PROJECT["dependencies"], *extras["tf"], *extras["export"], *extras["hf"], *extras["app"]]
    assert set(asked) == {need for need in known if not need.startswith(("smolite[", "ai-edge-quantizer"))}
    front = re.match(r"---\n(.*?)\n---\n", (SPACE / "README.md").read_text("utf-8"), re.DOTALL)[1]
    fields = dict(line.split(": ", 1) for line in front.splitlines())
    assert fields["sdk"] == "gradio" and (SPACE / fields["app_file"]).is_file()
    least = re.search(r">=([\d.]+),<(\d+)", extras["app"][0])
    version = [int(part) for part in fields["sdk_version"].split(".")]
    assert [int(part) for part in least[1].split(".")] <= version < [int(least[2])]
    least = PROJECT["requires-python"].removeprefix(">=").split(".")
    assert [int(part) for part in fields["python_version"].strip('"').split(".")] >= [int(part) for part in least]


def dockerfile():
    """Pairs of instruction and arguments."""
    text = (ROOT / "export" / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line and not line.startswith("#")]


def settings_of_image():
    (line,) = [rest for name, rest in dockerfile() if name == "ENV"]
    return dict(pair.split("=") for pair in shlex.split(line))


def test_the_image_is_careful():
    names = [name for name, _ in dockerfile()]
    steps = dict(dockerfile())
    assert steps["FROM"] == "python:3.11-slim" and settings_of_image()["SMOLITE_MODEL"] == "/model"
    made = re.search(r"useradd .*?(\w+)$", " ".join(rest for name, rest in dockerfile() if name == "RUN"))[1]
    assert steps["USER"] == made and names.index("USER") < names.index("CMD") and names.count("USER") == 1
    copied = [source for name, rest in dockerfile() if name == "COPY" for source in rest.split()[:-1]]
    assert {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], "smolite"} == set(copied)
    assert all((ROOT / source).exists() for source in copied)
    installed = re.search(r'"\.\[(.+)\]"', " ".join(rest for name, rest in dockerfile() if name == "RUN"))[1]
    assert set(installed.split(",")) <= set(PROJECT["optional-dependencies"]) and "app" in installed
    assert steps["STOPSIGNAL"] == "SIGINT" and "CMD" in steps["HEALTHCHECK"]


@pytest.mark.long
def test_the_command_of_the_image_serves_and_is_healthy(run, tmp_path):
    """Both commands as written, in an empty folder, with another model and port by the variables."""
    script = tmp_path / "bin" / "smolite"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\n{CLI}\n")
    script.chmod(0o755)
    steps, port = dict(dockerfile()), free_port()
    path = os.pathsep.join([str(script.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**settings_of_image(), "SMOLITE_MODEL": str(run), "PORT": port, "PATH": path}
    health = json.loads(steps["HEALTHCHECK"].split("CMD", 1)[1])

    def healthy():
        return subprocess.run(health, env=os.environ | environment, capture_output=True).returncode == 0

    assert not healthy()
    with served(json.loads(steps["CMD"]), tmp_path, port=port, **environment) as address:
        assert healthy() and "Chat" in labels(address)
    done = subprocess.run(
        json.loads(steps["CMD"]),
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment, "SMOLITE_MODEL": "/none"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "smolite app: A run directory must exist. Received: /none." in done.stderr
