"""The phone pages and the Android sample say what is true of the exporter; they themselves cannot be run here."""

import re
import shlex
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path

import pytest

from smolite.cli import parser as cli
from smolite.exporters.edge.names import DECODE, prefill_name
from smolite.exporters.litertlm import build as litertlm
from smolite.exporters.targets import TARGETS

ROOT = Path(__file__).parents[2]
EXPORT = ROOT / "export"
ANDROID = EXPORT / "android"
PAGES = {folder: (EXPORT / folder / "README.md").read_text("utf-8") for folder in ("android", "ios")}
KOTLIN = {path.name: path.read_text("utf-8") for path in sorted(ANDROID.rglob("*.kt"))}
GRADLE = "\n".join(path.read_text("utf-8") for path in sorted(ANDROID.rglob("*.gradle.kts")))
RESOURCES = ANDROID / "app" / "src" / "main" / "res"
NAME = re.compile(r"model\w*\.(?:litertlm|tflite|gguf)")
TEXTS = [*sorted(path for path in ANDROID.rglob("*") if path.is_file() and path.suffix in {".kt", ".kts", ".xml", ".md"})]


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_the_commands_of_a_page_are_known(page):
    blocks = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    inlined = [text for text in re.findall(r"`([^`\n]+)`", page) if re.match(r"smolite \w+ \S", text)]
    lines = [line for block in blocks for line in block.splitlines()] + inlined
    assert lines
    for line in lines:
        words = shlex.split(line)
        assert words[0] == "smolite"
        cli.read_settings(words[1], words[2:])


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_the_files_of_a_page_are_those_that_export_writes(page):
    written = {name for target in TARGETS.values() for name in target.file_names.values()}
    assert "model_int8.litertlm" in NAME.findall(page) and set(NAME.findall(page)) <= written
    for way in re.findall(r"--quantize (\w+)", page):
        assert way in TARGETS["litertlm"].file_names


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_signatures_and_clients_that_a_page_names_exist(page):
    names = {prefill_name(16), prefill_name(128), DECODE}
    assert names <= set(re.findall(r"`(\w+)`", page))
    assert "`../chat_tflite.py`" in page or "../chat_tflite.py" in page
    assert (EXPORT / "chat_tflite.py").is_file()


def test_a_page_says_what_was_not_run_and_where_it_is_from():
    assert "neither built with Gradle nor started on a phone" in PAGES["android"]
    assert "nothing on this page has been built or run" in PAGES["ios"]
    for page in PAGES.values():
        body, sources = page.split("## Sources")
        listed = {int(number) for number in re.findall(r"^(\d+)\. ", sources, re.MULTILINE)}
        cited = {int(number) for group in re.findall(r"\[(\d[\d, ]*)\]", body) for number in group.split(",")}
        assert cited <= listed and len(re.findall(r"https://", sources)) >= len(listed) - 1


def test_the_settings_for_the_gallery_are_those_in_the_file():
    values = re.search(
        r"\*\*Default TopK\*\* (\S+), \*\*Default TopP\*\* (\S+), \*\*Default temperature\*\* (\S+),", PAGES["android"]
    )
    assert [float(value) for value in values.groups()] == [litertlm.TOP_K, litertlm.TOP_P, litertlm.TEMPERATURE]


def test_every_version_is_pinned_and_on_the_page():
    packages = re.findall(r'"([\w.-]+:[\w.-]+):([^"]+)"', GRADLE)
    pins = packages + re.findall(r'id\("([\w.]+)"\) version "([^"]+)"', GRADLE)
    assert {name for name, _ in pins} == {
        "com.google.ai.edge.litertlm:litertlm-android",
        "org.jetbrains.kotlin:kotlin-gradle-plugin",
        "com.android.application",
    }
    for _, pinned in pins:
        assert re.fullmatch(r"\d+(\.\d+)+", pinned) and re.search(rf"(?<![\d.]){re.escape(pinned)}(?![\d.])", PAGES["android"])
    assert set(re.findall(r"(?:implementation|classpath)\((.*)\)", GRADLE)) == {f'"{name}:{pin}"' for name, pin in packages}
    runtime = dict(pins)["com.google.ai.edge.litertlm:litertlm-android"]
    assert runtime.split(".")[:2] == version("litert-lm-api").split(".")[:2]


def test_the_kotlin_opens_what_export_writes():
    (suffix,) = re.findall(r'const val SUFFIX = "(.+)"', KOTLIN["Models.kt"])
    assert {Path(name).suffix for name in TARGETS["litertlm"].file_names.values()} == {suffix}
    assert not re.search("SamplerConfig|maxNumTokens|<start>|<sep>", "".join(KOTLIN.values()))  # the file has them
    package = re.findall(r"^package (.+)$", "\n".join(KOTLIN.values()), re.MULTILINE)
    named = re.findall(r'(?:namespace|applicationId) = "(.+)"', GRADLE)
    assert len(named) == 2 and set(package) == {"dev.smolite.chat"} == set(named)


def test_resources_that_the_kotlin_names_exist():
    text = "".join(KOTLIN.values()) + (RESOURCES / "layout" / "main.xml").read_text("utf-8")
    text += (ANDROID / "app" / "src" / "main" / "AndroidManifest.xml").read_text("utf-8")
    named = set(re.findall(r"R\.string\.(\w+)|@string/(\w+)", text))
    strings = {first or second for first, second in named}
    tables = {}
    for folder in ("values", "values-ko"):
        root = ElementTree.parse(RESOURCES / folder / "strings.xml").getroot()
        tables[folder] = {child.get("name"): child.text for child in root}
    assert strings == set(tables["values"]) == set(tables["values-ko"])
    for name, english in tables["values"].items():
        holes = re.compile(r"%\d\$[\w.]+")
        assert sorted(holes.findall(english)) == sorted(holes.findall(tables["values-ko"][name]))
    assert set(re.findall(r"R\.id\.(\w+)", text)) <= set(re.findall(r"@\+id/(\w+)", text))
    assert "uses-permission" not in text


@pytest.mark.parametrize("path", [*TEXTS, EXPORT / "ios" / "README.md"], ids=lambda path: path.name)
def test_no_path_of_a_machine_is_written_down(path):
    text = path.read_text("utf-8")
    assert not re.search(r"(?<![\w.])/(?:home|Users|work|tmp|root|usr|opt)/", text) and "latest.release" not in text
    assert path.suffix != ".kt" or len(text.splitlines()) <= 200
