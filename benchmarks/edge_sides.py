"""The worker of edge.py: one file in one runtime, which reads a prompt and goes on from it, once a turn."""

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from turns import Link

# Its figures: `prefill` and `decode` in tokens/s, `first` in seconds to the first new token. All tokens of the prompt but the
# last are prefill; the last one is the first step.
Turn = Callable[[], dict[str, float]]
Opened = tuple[Turn, Callable[[], float]]  # and the mean log probability of the target after the prompt


def main(job: dict[str, Any], link: Link) -> None:
    """Opens the file that the job names, does a turn to warm up, and then turns with figures."""
    open_file = SIDES[job["side"]](job)
    link.mark_imported()
    start = time.perf_counter()
    turn, score = open_file()
    startup = time.perf_counter() - start
    turn()
    link.send(startup=startup)
    while True:
        link.wait()
        figures = turn()
        link.send(startup=startup, score=score(), **figures)


def litert(job: dict[str, Any]) -> Callable[[], Opened]:
    """Our engine on plain LiteRT."""
    import ai_edge_litert.compiled_model  # noqa: F401 - its time and memory are no part of opening a file

    from smolite.exporters.litert.engine import TFLiteEngine

    calls: list[tuple[int, float]] = []

    class TimedEngine(TFLiteEngine):
        def start(self, prompts):
            calls.clear()
            return super().start(prompts)

        def _read(self, tokens, *signature):
            start = time.perf_counter()
            logits = super()._read(tokens, *signature)
            calls.append((len(tokens), time.perf_counter() - start))
            return logits

    def prefill_speed() -> float:
        """Of the calls since the prompt came, but the last, which reads the last token and gives its logits."""
        tokens, seconds = (sum(column) for column in zip(*calls[:-1], strict=True))
        return tokens / seconds

    return lambda: of_engine(TimedEngine(job["path"], num_threads=job["threads"]), job, prefill_speed)


def llama_cpp(job: dict[str, Any]) -> Callable[[], Opened]:
    """llama.cpp as our engine drives it to compare logits, which is slower and larger than its users have it: see edge.py."""
    from cyllama.llama import llama_cpp as library  # noqa: F401 - as above

    from smolite.exporters.gguf.engine import LlamaCppEngine

    settings = {"num_threads": job["threads"], "context_length": job["cache"]}
    return lambda: of_engine(LlamaCppEngine(job["path"], **settings), job, None)


def of_engine(engine: Any, job: dict[str, Any], prefill_speed: Callable[[], float] | None) -> Opened:
    """A turn of an engine that takes ids: the prompt, then greedy steps.

    Args:
        engine: the engine.
        job: `prompt_ids`, `target_ids` and how many `tokens` to go on.
        prefill_speed: the speed of prefill in the last `start`; without it, all of `start` is prefill.
    """

    def turn() -> dict[str, float]:
        start = time.perf_counter()
        best = int(engine.start([job["prompt_ids"]])[0].argmax())
        first = time.perf_counter() - start
        speed = prefill_speed() if prefill_speed else len(job["prompt_ids"]) / first
        start = time.perf_counter()
        for _ in range(job["tokens"]):
            best = int(engine.step([best])[0].argmax())
        return {"prefill": speed, "first": first, "decode": job["tokens"] / (time.perf_counter() - start)}

    def score() -> float:
        logits, scores = engine.start([job["prompt_ids"]])[0], []
        for index in job["target_ids"]:
            scores.append(logits[index] - np.logaddexp.reduce(logits.astype("float64")))
            logits = engine.step([index])[0]
        return float(np.mean(scores))

    return turn, score


def litert_lm(job: dict[str, Any]) -> Callable[[], Opened]:
    """LiteRT-LM, with the figures that it measures itself."""
    import litert_lm

    litert_lm.set_min_log_severity(litert_lm.LogSeverity.ERROR)  # and loads the native library
    greedy = litert_lm.SamplerConfig(top_k=1, top_p=1.0, temperature=1.0)
    backend = litert_lm.Backend.CPU(thread_count=job["threads"])
    settings = {"sampler_config": greedy, "apply_prompt_template": False}

    def open_file() -> Opened:
        engine = litert_lm.Engine(job["path"], backend=backend, cache_dir=job["weight_cache"], enable_benchmark=True)

        def turn() -> dict[str, float]:
            with engine.create_session(max_output_tokens=job["tokens"], **settings) as session:
                session.run_prefill([job["prompt"]])
                session.run_decode()
                found = session.get_benchmark_info()
            prompt = found.last_prefill_token_count
            if prompt != len(job["prompt_ids"]):
                raise RuntimeError(f"The runtime read {prompt} tokens of {len(job['prompt_ids'])}.")
            return {
                "prefill": found.last_prefill_tokens_per_second * (prompt - 1) / prompt,  # it counts the last one, too
                "first": found.time_to_first_token_in_second,
                "decode": found.last_decode_tokens_per_second,
            }

        def score() -> float:
            with engine.create_session(max_output_tokens=1, **settings) as session:
                session.run_prefill([job["prompt"]])
                session.run_decode()  # version 0.18 scores from the right place only after it
                return float(np.mean(session.run_text_scoring([job["target"]]).token_scores[0]))

        return turn, score

    return open_file


def memory(job: dict[str, Any]) -> Callable[[], Opened]:
    """How fast the processor reads an array that no cache holds, as `decode` in bytes/s: no runtime reads weights faster."""
    array = np.ones(1 << 25, "int64")
    parts = np.array_split(array, job["threads"])

    def turn() -> dict[str, float]:
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, parts))
            seconds.append(time.perf_counter() - start)
        return {"prefill": 0.0, "first": 0.0, "decode": array.nbytes / min(seconds)}

    pool = ThreadPoolExecutor(job["threads"])
    return lambda: (turn, lambda: 0.0)


SIDES = {
    "memory": memory,
    "smolite .tflite": litert,
    "smolite .litertlm": litert_lm,
    "smolite .litertlm, growing": litert_lm,
    "litert-torch": litert_lm,
    "llama.cpp": llama_cpp,
}

if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Link())
