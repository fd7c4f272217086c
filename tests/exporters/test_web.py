"""The page of export/web: its rules in Node, and a chat in headless Chromium, online and without its server."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from served import HOSTILE, free_port, hostile_run, served

from smolite.checkpoint import run as checkpoint
from smolite.data.template import Message
from smolite.exporters.exporting import export
from smolite.exporters.litertlm.browser_engine import BrowserEngine
from smolite.exporters.verification.verification import verify
from smolite.generation.keras_engine import KerasEngine
from smolite.generation.replies import reply

WEB = Path(__file__).parents[2] / "export" / "web"
NODE = shutil.which("node") and shutil.which("npm")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = "needs Node, Chromium and its driver, as of `apt-get install nodejs npm chromium chromium-driver`"
in_browser = pytest.mark.skipif(not (NODE and CHROMIUM and shutil.which("chromedriver")), reason=MISSING)
WATCH = """
window.sizes = [];
const log = document.getElementById("log");
new MutationObserver(() => sizes.push(log.textContent.length)).observe(log, {subtree: true, childList: true});
document.getElementById("temperature").value = 0;
"""


@pytest.mark.skipif(not NODE, reason="needs Node, as of `apt-get install nodejs npm`")
def test_rules_of_a_chat():
    done = subprocess.run(["node", "--test", "test/chat.test.js"], cwd=WEB, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# pass 5" in done.stdout and "# skipped 0" in done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The built page; its packages come from npm, unless they are installed already."""
    folder = tmp_path_factory.mktemp("page") / "web"
    shutil.copytree(WEB, folder, ignore=shutil.ignore_patterns("node_modules", "dist"))
    if (WEB / "node_modules").is_dir():
        (folder / "node_modules").symlink_to(WEB / "node_modules")
    elif subprocess.run(["npm", "ci"], cwd=folder, capture_output=True, timeout=300).returncode:
        pytest.skip("npm could not fetch the packages of export/web")
    subprocess.run(["npm", "run", "build"], cwd=folder, check=True, capture_output=True, timeout=120)
    return folder / "dist"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return hostile_run(tmp_path_factory)


@pytest.fixture(scope="module")
def page(built, run, tmp_path_factory):
    """The page as built, with the run's file as its model."""
    file = export(run, format="litertlm", out=tmp_path_factory.mktemp("bundle"), cache_length=128, prefill_lengths=[16])
    (built / "model").mkdir()
    shutil.copy(file, built / "model" / "model_int8.litertlm")
    return built


@pytest.fixture
def driver(tmp_path):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in "headless=new no-sandbox disable-background-networking disable-dev-shm-usage lang=en".split():
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def wait(condition, seconds=60):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def open_page(driver, address):
    driver.get(address)
    wait(lambda: driver.execute_script("return document.documentElement.dataset.kept"))
    assert driver.find_element("id", "status").text == "model_int8.litertlm is ready, on this device alone."
    driver.execute_script(WATCH)


def say(driver, text):
    """Says something and returns the answer."""
    driver.find_element("id", "prompt").send_keys(text, "\n")
    wait(lambda: driver.find_element("id", "send").is_enabled())
    assert not driver.find_elements("css selector", "#log .error")
    return driver.find_elements("css selector", "#log .model")[-1].get_property("textContent")


@pytest.mark.slow
@in_browser
def test_the_page_answers_as_keras_does_and_needs_no_other_server(page, run, driver, tmp_path):
    loaded, port = checkpoint.load(run), free_port()
    serve = [sys.executable, "-m", "http.server", port, "--bind", "127.0.0.1", "--directory", str(page)]
    with served(serve, tmp_path, port=port, path="index.html") as address:
        open_page(driver, address)
        said = [Message("user", "안녕!")]
        assert say(driver, "안녕!") == keras_reply(loaded, said, most=128) == HOSTILE
        said += [Message("assistant", HOSTILE), Message("user", "또 만나요")]
        driver.execute_script("document.getElementById('most').value = 20")  # so the chat is begun anew, with what was said
        assert say(driver, "또 만나요") == keras_reply(loaded, said, most=20)
        assert driver.title == "Smolite"
        assert not driver.find_elements("css selector", "#log script, #log b")
        assert len(set(driver.execute_script("return sizes"))) > 10
        assert "tokens/s" in driver.find_element("id", "figures").get_property("textContent")
        asked = requests(driver)
        assert len(asked) > 3 and all(url.startswith(address) for url in asked)
    open_page(driver, address)  # its server has ended
    assert say(driver, "안녕!") == HOSTILE


@pytest.mark.slow
@in_browser
def test_verify_asks_the_page_too_and_a_wrong_answer_there_turns_it_red(built, run, tmp_path, monkeypatch):
    export(run, format="litertlm", out=tmp_path, cache_length=128, growing_cache=True)
    few = {"prompts": ["안녕!", "또 만나요", "a"], "browser": built}
    report, name = verify(run, out=tmp_path, **few), "model.litertlm in Chromium"
    assert report.passed, report.table()
    (row,) = [row for row in report.rows if row.artifact == name]
    assert row.tokens == row.num_tokens > 20
    monkeypatch.setattr(BrowserEngine, "reply", lambda self, text, *, max_new_tokens: "x")
    assert {row.artifact for row in verify(run, out=tmp_path, **few).rows if not row.passed} == {name}


def keras_reply(run, said, *, most):
    words = {"tokenizer": run.tokenizer, "template": run.template}
    return reply(KerasEngine(run.model), said, **words, max_new_tokens=most).strip()


def requests(driver):
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if url.startswith("http")]  # neither the browser's own pages nor data


@pytest.mark.slow
@in_browser
def test_a_page_without_a_model_asks_for_one(built, driver, tmp_path):
    port, empty = free_port(), tmp_path / "empty"
    shutil.copytree(built, empty, ignore=shutil.ignore_patterns("model"))
    serve = [sys.executable, "-m", "http.server", port, "--bind", "127.0.0.1", "--directory", str(empty)]
    with served(serve, tmp_path, port=port, path="index.html") as address:
        driver.get(address)
        wait(lambda: driver.execute_script("return document.documentElement.dataset.kept"))
        assert driver.find_element("id", "status").text == "No model here. Open a .litertlm file that smolite exported."
        (empty / "broken.litertlm").write_bytes(b"no model")
        driver.find_element("id", "file").send_keys(str(empty / "broken.litertlm"))
        wait(lambda: driver.find_elements("css selector", "#log .error"))
        assert not driver.find_element("id", "prompt").is_enabled()
