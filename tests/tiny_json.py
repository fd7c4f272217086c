"""A byte-level tokenizer of the kind that SmolLM2 has, trained in a blink by the library `tokenizers`, and its templates."""

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

MARKERS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ROLES = {"start": "<|im_start|>", "end": "<|im_end|>", "pad": "<|endoftext|>"}
# `chat_template` of HuggingFaceTB/SmolLM2-135M-Instruct and of HuggingFaceTB/SmolLM-135M-Instruct.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a "
    "helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + "
    "'\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
SMOLLM = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

CORPUS = [
    "안녕하세요! 오늘 날씨가 정말 좋네요.",
    "점심에 뭐 먹었어? 김치찌개 먹었어 ㅋㅋㅋ",
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    "def f(x):\n\treturn {'a': [1, 2]}  # it's 12,345",
    "<|im_start|>user\nassistant system<|im_end|>\n",
    "가나다라마바사아자차카타파하 the end",
] * 3


def byte_level(*, unk_token: str | None = None, vocab_size: int = 400) -> Tokenizer:
    """The library's own tokenizer; bytes that `CORPUS` lacks have no token, unless it is `unk_token`."""
    tokenizer = Tokenizer(models.BPE(unk_token=unk_token))
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    special = [*MARKERS, *filter(None, [unk_token])]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@cache
def trained() -> bytes:
    """The bytes of its `tokenizer.json`."""
    return byte_level().to_str().encode()
