"""What every test run shares: the backend when none is chosen, quiet logs, and what runs on every backend."""

import os

import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side; torch's idle threads would spin

# Files that compute nothing with Keras in this process, or whose long runs are worth having once; `make test` runs them on
# one backend only.
ONE_BACKEND = frozenset(
    "test_app test_app_browser test_app_places test_benchmarks test_chat test_config test_curves test_dialogues test_docs "
    "test_files test_house test_normalization test_notebook test_options test_packing test_pair_export test_private_markers "
    "test_readme test_seeds test_sentencepiece_model test_sources test_hub_templates test_tokenizer test_tokenizer_json".split()
)

# Their slow tests convert, which happens in a process of its own on TensorFlow whatever the backend.
CONVERSIONS = frozenset("test_exporters test_forms test_litertlm test_text_check".split())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        converts = item.path.stem in CONVERSIONS and item.get_closest_marker("slow")
        if item.path.stem not in ONE_BACKEND and not converts:
            item.add_marker(pytest.mark.backend)
