"""What every test run shares: the backend when none is chosen, quiet logs, and what runs on every backend."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")  # which compiles nothing, and so is done first
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # what runs for a moment is compiled in two thirds of the time
# What JAX has compiled is kept beside the cache of pytest: for the other process, for tests of like shapes, for the next run.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side; torch's idle threads would spin

# Files that compute nothing with Keras in this process, or whose long runs and conversions are worth having once; `make test`
# runs them on one backend only.
ONE_BACKEND = frozenset(
    "test_app test_app_browser test_app_places test_benchmarks test_chat test_cli test_cli_talk test_config test_conversion "
    "test_curves test_dialogues test_distribution test_docs test_exporters test_faults test_files test_gguf test_growing "
    "test_house test_hub test_hub_memory test_hub_templates test_interrupted test_litert_engine test_litertlm test_lookup "
    "test_manifest test_new_target test_normalization test_notebook test_options test_packing test_pair_ablation "
    "test_pair_export test_phone test_planning test_private_markers test_quality test_quantization test_readme test_seeds "
    "test_sentencepiece_model test_smollm2_recipe test_sources test_text_check test_texts test_tokenizer "
    "test_tokenizer_json test_verification test_web test_windows".split()
)

# Whose slow tests run on one backend, too: they export in processes of their own, or repeat at length what others check.
SLOW_ONCE = frozenset(["test_forms", "test_smolite1"])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.slow)
        once = item.path.stem in SLOW_ONCE and item.get_closest_marker("slow")
        if item.path.stem not in ONE_BACKEND and not once:
            item.add_marker(pytest.mark.backend)
