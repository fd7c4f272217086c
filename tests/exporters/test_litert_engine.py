import itertools
import shutil
import sys

import numpy as np
import pytest
import stories
from ai_edge_litert.interpreter import Interpreter
from exported import LAYERS, PREFILL, SLOTS, exported_run, follow, keras_logits, run_apart

from smolite.checkpoint import run as checkpoint
from smolite.checkpoint.weights import assign_weights
from smolite.exporters.edge.engine import plan_prefill
from smolite.exporters.litert.engine import TFLiteEngine
from smolite.exporters.saved_model.engine import SavedModelEngine
from smolite.generation.loop import generate
from smolite.models.causal_lm import CausalLM
from smolite.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return exported_run(tmp_path_factory)


@pytest.fixture(scope="module")
def model(run):
    return checkpoint.load_model(run)


@pytest.fixture(scope="module")
def engine(run):
    return TFLiteEngine(run / "export" / "model.tflite")


@pytest.fixture(scope="module")
def text(model):
    return np.random.default_rng(0).integers(model.config.vocab_size, size=SLOTS).tolist()


def test_the_engine_knows_the_sizes_of_the_file(engine, model):
    sizes = engine.batch_size, engine.context_length, engine.vocab_size, engine.prefill_lengths
    assert sizes == (1, SLOTS, model.config.vocab_size, PREFILL)


@pytest.mark.parametrize("split", [1, 2, 5, 17, 18, 23, SLOTS - 1, SLOTS])
def test_any_split_of_prompt_and_steps_gives_the_logits_of_the_uncached_model(engine, model, text, split):
    expected = keras_logits(model, text)[split - 1 :]
    np.testing.assert_allclose(follow(engine, text, split), expected, atol=1e-4)


LIGHT = """
import sys, smolite
from smolite import ChatTemplate, Message, TFLiteEngine, Tokenizer, reply

engine = TFLiteEngine(sys.argv[1] + "/model.tflite")
logits = [*engine.start([[5, 6, 7]])[0], *engine.step([9])[0]]
tokenizer = Tokenizer(sys.argv[1] + "/tokenizer.model")
reply(engine, [Message("user", "abc")], tokenizer=tokenizer, template=ChatTemplate(), max_new_tokens=4)
print(*{"keras", "tensorflow", "jax", "torch"} & set(sys.modules), sum(map(float, logits)))
"""


def test_a_file_runs_and_chats_without_keras_and_without_a_backend(run, engine):
    expected = follow(engine, [5, 6, 7, 9], 3).sum(dtype="float64")
    assert float(run_apart(LIGHT, run / "export")) == pytest.approx(expected, abs=1e-3)


def test_a_saved_model_gives_the_same_logits(run, model, text):
    engine = SavedModelEngine(run / "export" / "saved_model")
    expected = keras_logits(model, text)
    np.testing.assert_allclose(follow(engine, text, 23), expected[22:], atol=1e-4)
    np.testing.assert_allclose(engine.forward(np.array([text, text]))[1], expected, atol=1e-4)
    np.testing.assert_allclose(engine.forward_logits(text[:9], text[9:]), expected[8:-1], atol=1e-4)


def test_int8_logits_are_near_the_models(run, model, text):
    difference = follow(TFLiteEngine(run / "export" / "model_int8.tflite"), text, 20) - keras_logits(model, text)[19:]
    assert 1e-4 < np.abs(difference).max() < 0.1


def test_the_caches_are_those_of_the_plain_interpreter_which_copies_them(run, engine, text):
    """The engine binds one buffer as input and output; LiteRT's older interface has a buffer for each."""
    runner = Interpreter(str(run / "export" / "model.tflite")).get_signature_runner("prefill_16")
    caches = {n: np.zeros(d["shape"], "float32") for n, d in runner.get_input_details().items() if n.startswith("kv")}
    mask = np.where(np.tri(16, SLOTS, dtype=bool), 0, -1e9).astype("float32")[None, None]
    tokens, places = np.array([text[:16]], "int32"), np.arange(16, dtype="int32")
    expected = runner(tokens=tokens, input_pos=places, mask=mask, **caches)
    engine.start([text[:17]])
    returned = engine.read_caches()
    assert returned.keys() == expected.keys() and len(returned) == 2 * LAYERS
    for name, cache in expected.items():
        used = np.s_[:, :, :16] if "_k_" in name else np.s_[..., :16]
        np.testing.assert_array_equal(returned[name][used], cache[used])


def test_start_forgets_what_came_before(engine, text):
    first = engine.start([text[:9]])
    follow(engine, text[::-1], 30)
    np.testing.assert_array_equal(engine.start([text[:9]]), first)


def test_two_engines_on_one_file_do_not_disturb_each_other(run, engine, text):
    other = TFLiteEngine(run / "export" / "model.tflite")
    expected = follow(engine, text, 9)
    engine.start([text[:9]])
    other.start([text[::-1]])
    np.testing.assert_array_equal(engine.step([text[9]])[0], expected[1])


def test_generate_goes_on_when_the_cache_is_full(engine, text):
    assert len(generate(engine, [text[:40]], max_new_tokens=20)[0]) == 20


def test_plans_of_the_docstring():
    assert plan_prefill(20, (16, 128), 512) == [(16, 16), (16, 4)]
    assert plan_prefill(130, (16, 128), 512) == [(128, 128), (16, 2)]
    assert plan_prefill(18, (16, 128), 20) == [(16, 16), (1, 1), (1, 1)]


@pytest.mark.parametrize("slots", [16, 17, 31, 40])
def test_a_plan_reads_every_token_and_stays_inside_the_cache(slots):
    for count in range(slots + 1):
        plan = plan_prefill(count, (4, 16), slots)
        starts = itertools.accumulate((used for _, used in plan), initial=0)
        assert sum(used for _, used in plan) == count
        assert all(start + length <= slots for start, (length, _) in zip(starts, plan, strict=False))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[1], [2]], "takes one prompt at a time. Received: 2. Give them one by one"),
        ([[]], f"must have 1 to {SLOTS} tokens.*Received: 0"),
        ([[1] * (SLOTS + 1)], f"must have 1 to {SLOTS} tokens.*Received: {SLOTS + 1}"),
        ([[-1]], "Token ids must be from 0 to 329. Received: -1"),
    ],
)
def test_prompts_that_cannot_be_read(engine, prompts, message):
    with pytest.raises(ValueError, match=message):
        engine.start(prompts)


def test_a_step_into_a_full_cache(engine, text):
    engine.start([text])
    with pytest.raises(ValueError, match=f"must have a free slot. Received: a step after {SLOTS} tokens in {SLOTS} slots"):
        engine.step([1])


def test_a_file_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match="A .tflite file was expected. Received: .*none.tflite"):
        TFLiteEngine(tmp_path / "none.tflite")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.4, 0.99])
@pytest.mark.parametrize("name", ["model.tflite", "model_int8.tflite"])
def test_a_file_that_was_cut_off(run, tmp_path, name, share):
    data = (run / "export" / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match="A whole .tflite file was expected. Received: .* Export it again. Reason"):
        TFLiteEngine(tmp_path / name)


@pytest.mark.slow
def test_nothing_is_written_to_standard_error(run):
    """Here standard error goes where standard output goes, before LiteRT is there and until the process has ended."""
    code = """if True:
        import os, sys
        from smolite import TFLiteEngine
        os.dup2(1, 2)
        print(TFLiteEngine(sys.argv[1]).start([[1, 2]]).shape)
    """
    assert run_apart(code, run / "export" / "model.tflite") == "(1, 330)\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the weights are shared on Linux only")
def test_the_signatures_share_their_packed_weights(run):
    """What XNNPACK packs lies in a file in memory; signatures with weights of their own would make it three times as large."""
    code = """if True:
        import sys
        from pathlib import Path
        from smolite import TFLiteEngine
        engine = TFLiteEngine(sys.argv[1])
        parts = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:XNN" in line]
        print(sum(int(end, 16) - int(begin, 16) for begin, end in parts))
    """
    path = run / "export" / "model.tflite"
    weights = 4 * checkpoint.load_model(run).config.num_parameters
    assert 0.9 < int(run_apart(code, path)) / weights < 1.9


STORIES = """
import sys
from pathlib import Path
from smolite.checkpoint import run as checkpoint
from smolite.exporters.saved_model.build import build_saved_model
from smolite.exporters.litert.build import build_tflite
model = checkpoint.load_model(sys.argv[1])
names = build_saved_model(model, sys.argv[2], prefill_lengths=(16,), cache_length=256)
build_tflite(sys.argv[2], sys.argv[3], names)
"""


@pytest.mark.slow
@pytest.mark.skipif(not stories.FOLDER.exists(), reason=stories.REASON)
def test_stories260k_prints_its_golden_text(tmp_path):
    model = CausalLM(stories.stories_config())
    assign_weights(model, stories.stories_weights())
    checkpoint.save(tmp_path / "run", model, Tokenizer(stories.stories_tokenizer_proto()))
    run_apart(STORIES, tmp_path / "run", tmp_path / "saved", tmp_path / "s.tflite", KERAS_BACKEND="tensorflow")
    shutil.rmtree(tmp_path / "saved")
    engine = TFLiteEngine(tmp_path / "s.tflite")
    golden = stories.stories_golden()[0]
    reply = generate(engine, [golden["prompt_ids"]], max_new_tokens=200)[0]
    assert stories.stories_decode(golden["prompt_ids"] + reply) == stories.stories_text()
