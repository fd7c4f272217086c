"""The verbs of the command line: what each does in one line, an example, and where its function is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """A word after `smolite`.

    Args:
        line: what it does, in one line.
        example: a whole command.
        module: where the function of the verb's name is.
        function: its name where it isn't the verb's.
        needs_backend: whether Keras and a backend must be installed; a missing one is then named before anything is done.
            With another `--engine` than keras a verb needs none.
    """

    line: str
    example: str
    module: str = "smolite.cli.verbs"
    function: str = ""
    needs_backend: bool = True


LIGHT = "smolite.cli.light_verbs"
GROUPS: dict[str, dict[str, Verb]] = {
    "Start": {
        "demo": Verb("train on the bundled dialogues, export, verify, and chat from the phone file", "smolite demo"),
    },
    "Prepare data": {
        "data": Verb(
            "look at dialogues: what a model will learn from them",
            "smolite data show dialogues.jsonl --count 5",
            module=LIGHT,
            needs_backend=False,
        ),
        "tokenizer": Verb(
            "train a tokenizer on text or dialogues",
            "smolite tokenizer corpus.txt --vocab-size 8192 --out tokenizer.model",
            module=LIGHT,
            needs_backend=False,
        ),
    },
    "Train": {
        "pretrain": Verb(
            "train a model on plain text",
            "smolite pretrain --dataset corpus.txt --out runs/text --epochs 3",
        ),
        "finetune": Verb(
            "train a model on dialogues; only the answers are learnt",
            "smolite finetune --dataset dialogues.jsonl --start runs/text --out runs/chat",
        ),
        "pairs": Verb(
            "train an encoder-decoder on pairs of a source and a target",
            "smolite pairs --dataset sample-pairs --out runs/translation",
        ),
    },
    "Talk": {
        "chat": Verb("talk with a run in the terminal", "smolite chat runs/chat --engine int8"),
        "generate": Verb(
            "let a run continue a text, or write the target of a source",
            "smolite generate runs/text '옛날 옛적에' --max-new-tokens 64",
        ),
        "app": Verb("talk with a run in the browser", "smolite app runs/chat --port 8000"),
    },
    "Ship": {
        "export": Verb(
            "write a run as a file for another runtime, and verify it",
            "smolite export runs/chat --format tflite --quantize int8",
        ),
        "verify": Verb(
            "compare exported files with the Keras model, each in its own runtime",
            "smolite verify runs/chat --measure",
        ),
        "quantize": Verb(
            "write a run with weights of 8 or 4 bits, a quarter or a sixth of the size",
            "smolite quantize runs/chat --bits 4 --out runs/small",
        ),
        "convert": Verb(
            "write a model in another form, with the same weights",
            "smolite convert HuggingFaceTB/SmolLM2-135M-Instruct runs/smollm2",
        ),
    },
    "Measure": {
        "evaluate": Verb(
            "bits per character, perplexity and accuracy on held-out dialogues",
            "smolite evaluate runs/chat sample-heldout",
        ),
        "bench": Verb(
            "measure prefill and decode speed of a run and its exported files",
            "smolite bench runs/chat",
            module="smolite.cli.bench",
        ),
        "quality": Verb(
            "measure every way to quantize, and keep the smallest file that is good enough",
            "smolite quality runs/chat --max-loss 1%",
        ),
        "plan": Verb(
            "say before any export how large the files will be, and what memory and speed they allow",
            "smolite plan smollm2-135m --cache-length 512",
            module="smolite.exporters.planning.plan",
            function="print_plan",
            needs_backend=False,
        ),
        "params": Verb("count the parameters of a preset or a run, by kind of layer", "smolite params smolite-small"),
    },
}
VERBS = {name: verb for verbs in GROUPS.values() for name, verb in verbs.items()}
