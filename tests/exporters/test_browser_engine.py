"""What is refused before a browser is started; `test_web.py` has the answers in one."""

import shutil
import sys

import pytest

from smolite.exporters.litertlm import browser_engine
from smolite.exporters.litertlm.browser_engine import BrowserEngine, check_browser
from smolite.exporters.verification.verification import verify


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A folder that looks like the built page, with a browser on the path."""
    (tmp_path / "page" / "wasm").mkdir(parents=True)
    (tmp_path / "page" / "index.html").write_text("<title>Smolite</title>")
    monkeypatch.setattr(browser_engine.shutil, "which", lambda name: f"/usr/bin/{name}")
    return tmp_path / "page"


def test_a_page_that_is_not_built_is_refused(page):
    check_browser(page)
    shutil.rmtree(page / "wasm")
    with pytest.raises(FileNotFoundError, match=r"folder of the built page was expected\. Received: .*page\. Build it: npm ci"):
        check_browser(page)


def test_a_missing_browser_is_named(page, monkeypatch):
    monkeypatch.setattr(browser_engine.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"Chromium and its driver .*apt-get install chromium chromium-driver"):
        check_browser(page)


def test_a_missing_package_is_named(page, monkeypatch):
    monkeypatch.setitem(sys.modules, "selenium", None)
    with pytest.raises(ImportError, match=r'pip install "smolite\[browser\]"'):
        check_browser(page)


def test_a_missing_file_is_refused(page, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"A \.litertlm file was expected\. Received: .*none\.litertlm"):
        BrowserEngine(page, tmp_path / "none.litertlm")


def test_verify_refuses_a_missing_page_before_it_loads_a_run(tmp_path):
    (tmp_path / "model.tflite").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="folder of the built page"):
        verify(tmp_path / "no run", out=tmp_path, browser=tmp_path / "dist")
