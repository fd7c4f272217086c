"""LoRA, merged and apart. Referees: the matrices of Keras merged in numpy, transformers, keras-hub, and PEFT where it is."""

import dataclasses
import json
import shutil

import keras
import numpy as np
import pytest
from reference import run as run_model
from safetensors.numpy import load_file, save_file
from tiny import TINY, conversations, tokenizer

from smolite.checkpoint import run as checkpoint
from smolite.checkpoint.adapters import load_adapter, save_adapter
from smolite.data.dataset import ChatDataset
from smolite.data.packing import pack
from smolite.data.template import ChatTemplate, fit_context
from smolite.models.causal_lm import CausalLM
from smolite.training.compilation import compile_for_training
from smolite.training.options import TrainingOptions
from smolite.training.starts import continued_model

CONFIG = dataclasses.replace(TINY, num_layers=2, dropout=0.0)
IDS = np.random.RandomState(0).randint(5, 1024, (2, 11)).astype("int32")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run before LoRA."""
    keras.utils.set_random_seed(1)
    return checkpoint.save(tmp_path_factory.mktemp("runs") / "base", CausalLM(CONFIG), tokenizer())


def projections(model):
    """The projections of a model by Hugging Face's names."""
    names = {}
    for i, block in enumerate(model.blocks):
        attention = {"q": block.attention.query, "k": block.attention.key, "v": block.attention.value}
        attention["o"] = block.attention.output_projection
        mlp = {"gate": block.mlp.gate, "up": block.mlp.up, "down": block.mlp.down}
        for part, layers in (("self_attn", attention), ("mlp", mlp)):
            names |= {f"model.layers.{i}.{part}.{name}_proj": layer for name, layer in layers.items()}
    return names


def adapted(base, *, frozen=True, dtype=None, **ranks):
    """The model of a run with LoRA on its projections, `ranks` of 8 where nothing else is said, and B no longer zeros."""
    model = checkpoint.load(base, dtype=dtype).model
    for weight in model.weights if frozen else ():
        weight.trainable = False
    random = np.random.RandomState(2)
    for name, layer in projections(model).items():
        rank = ranks.get(name.rsplit(".", 1)[-1], 8)
        if rank:
            layer.enable_lora(rank, lora_alpha=2 * rank)
            layer.lora_kernel_b.assign(0.05 * random.standard_normal(layer.lora_kernel_b.shape))
    return model


def fit(model, steps=20):
    rows = pack(fit_context(conversations()[:16], tokenizer(), context_length=64, template=ChatTemplate()).examples, 64)
    compile_for_training(model, TrainingOptions(learning_rate=1e-2, batch_size=4), total_steps=steps)
    model.fit(ChatDataset(rows, 4, steps_per_epoch=steps), shuffle=False, verbose=0)


def same_logits(left, right):
    np.testing.assert_allclose(run_model(left, IDS), run_model(right, IDS), rtol=0, atol=1e-5)


def moved(left, right):
    return np.abs(run_model(left, IDS) - run_model(right, IDS)).max()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_lora_learnt_is_saved_merged_and_replaces_a_run(base, tmp_path):
    model = checkpoint.load(base).model
    for layer in projections(model).values():
        layer.enable_lora(8)
    fit(model)
    assert moved(model, checkpoint.load(base).model) > 0.3
    folder = checkpoint.save(tmp_path / "new", model, tokenizer())
    same_logits(checkpoint.load(folder).model, model)
    old = shutil.copytree(base, tmp_path / "old")
    checkpoint.save(old, model, tokenizer(), overwrite=True)
    same_logits(checkpoint.load(old).model, model)


def test_fewer_bits_are_those_of_the_merged_weights(base, tmp_path):
    model = adapted(base)
    whole = checkpoint.load(checkpoint.save(tmp_path / "whole", model, tokenizer())).model
    for bits in (8, 4):
        expected = checkpoint.save(tmp_path / f"expected{bits}", whole, tokenizer(), bits=bits)
        folder = checkpoint.save(tmp_path / f"merged{bits}", model, tokenizer(), bits=bits)
        name = f"model_int{bits}.safetensors"
        assert (folder / name).read_bytes() == (expected / name).read_bytes()


def test_weights_are_merged_in_float32_also_where_the_model_computes_in_half(base, tmp_path):
    """`layer.kernel` of such a layer is rounded to bfloat16, 256 times as coarse as what is compared here."""
    model = adapted(base, dtype="mixed_bfloat16")
    stored = load_file(checkpoint.save(tmp_path / "run", model, tokenizer()) / "model.safetensors")
    before = load_file(base / "model.safetensors")
    for name, layer in projections(model).items():
        down, up = (np.asarray(keras.ops.convert_to_numpy(each)) for each in (layer.lora_kernel_a, layer.lora_kernel_b))
        expected = before[f"{name}.weight"] + 2 * (down.astype("float64") @ up).T
        np.testing.assert_allclose(stored[f"{name}.weight"], expected, rtol=0, atol=1e-6)


def test_lora_of_the_embedding_is_merged_and_is_no_adapter(base, tmp_path):
    model = checkpoint.load(base).model
    model.token_embedding.enable_lora(4)
    model.token_embedding.lora_embeddings_b.assign(np.full((4, 32), 0.1))
    same_logits(checkpoint.load(checkpoint.save(tmp_path / "run", model, tokenizer())).model, model)
    with pytest.raises(ValueError, match=r"no adapter for an embedding .* Received: LoRA at model.embed_tokens.weight"):
        save_adapter(tmp_path / "adapter", model)


def test_keras_hub_and_a_continued_run_take_the_merged_weights(base):
    keras_hub = pytest.importorskip("keras_hub")
    from smolite.exporters.neighbours.keras_hub import to_keras_hub

    model = adapted(base)
    same_logits(continued_model(model, TrainingOptions(sequence_length=32)), model)
    theirs = to_keras_hub(model)
    assert isinstance(theirs, keras_hub.models.LlamaCausalLM)
    logits = run_model(theirs, {"token_ids": IDS, "padding_mask": np.ones_like(IDS)})
    np.testing.assert_allclose(logits, run_model(model, IDS), rtol=0, atol=1e-4)


def test_a_saved_model_is_built_from_merged_weights_alone(base, tmp_path):
    from smolite.exporters.saved_model.build import build_saved_model

    with pytest.raises(ValueError, match="built from plain layers. Received: LoRA or a quantized layer at model.layers.0"):
        build_saved_model(adapted(base), tmp_path / "saved_model", prefill_lengths=(4,), cache_length=16)


def test_an_adapter_on_its_model_says_the_same(base, tmp_path):
    model = adapted(base)
    folder = save_adapter(tmp_path / "adapter", model, base=base)
    assert sorted(contents(folder)) == ["adapter_config.json", "adapter_model.safetensors"]
    assert moved(model, checkpoint.load(base).model) > 0.3
    again = checkpoint.load(base).model
    again.trainable = False
    load_adapter(again, folder)
    same_logits(again, model)
    assert len(again.trainable_weights) == 2 * 14
    save_adapter(folder, again, base=base, overwrite=True)
    with pytest.raises(FileExistsError, match="allow replacing it"):
        save_adapter(folder, again)


@pytest.mark.parametrize("ranks", [{}, {"k_proj": 0, "v_proj": 3}], ids=["all", "some"])
def test_transformers_with_the_matrices_added_says_the_same(base, tmp_path, ranks):
    """The folder read by PEFT's rules: W + alpha / rank · B · A, the patterns before the settings of all."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    model = adapted(base, **ranks)
    folder = save_adapter(tmp_path / "adapter", model)
    settings = json.loads((folder / "adapter_config.json").read_text())
    names = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert set(settings["target_modules"]) == {name for name in names if ranks.get(name, 8)}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, module in theirs.named_modules():
        down = tensors.pop(f"base_model.model.{name}.lora_A.weight", None)
        if down is not None:
            up = tensors.pop(f"base_model.model.{name}.lora_B.weight")
            rank = settings["rank_pattern"].get(name, settings["r"])
            alpha = settings["alpha_pattern"].get(name, settings["lora_alpha"])
            assert (len(down), module.in_features, module.out_features) == (rank, down.shape[1], len(up))
            module.weight.data += alpha / rank * torch.tensor(up) @ torch.tensor(down)
    assert not tensors
    with torch.no_grad():
        logits = theirs(torch.tensor(IDS.astype("int64"))).logits.numpy()
    np.testing.assert_allclose(logits, run_model(model, IDS), rtol=0, atol=1e-4)


def test_projections_of_one_layer_are_listed_one_by_one(base, tmp_path):
    model = checkpoint.load(base).model
    model.trainable = False
    model.blocks[1].attention.query.enable_lora(2)
    settings = json.loads((save_adapter(tmp_path / "one", model) / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["model.layers.1.self_attn.q_proj"]


def test_peft_reads_it_and_we_read_what_peft_writes(base, tmp_path):
    peft, transformers, torch = (pytest.importorskip(name) for name in ("peft", "transformers", "torch"))
    model = adapted(base, k_proj=0, v_proj=3)
    folder = save_adapter(tmp_path / "adapter", model, base=base)
    theirs = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), folder)
    with torch.no_grad():
        logits = theirs(torch.tensor(IDS.astype("int64"))).logits.numpy()
    np.testing.assert_allclose(logits, run_model(model, IDS), rtol=0, atol=1e-4)
    theirs.save_pretrained(tmp_path / "theirs")
    again = checkpoint.load(base).model
    load_adapter(again, tmp_path / "theirs")
    same_logits(again, model)


def test_what_an_adapter_would_lose_is_refused(base, tmp_path):
    with pytest.raises(ValueError, match=r"made of LoRA matrices. Received: a model without. Call `model.enable_lora"):
        save_adapter(tmp_path / "adapter", checkpoint.load(base).model)
    with pytest.raises(ValueError, match=r"all other weights must be frozen. Received trainable ones: \S*scale, .* …. Call"):
        save_adapter(tmp_path / "adapter", adapted(base, frozen=False))
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("changes", "received"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"use_rslora": True}, "peft_type='LORA', use_rslora=True"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\]"),
        ({"bias": "all"}, "bias='all'"),
    ],
)
def test_another_kind_of_adapter_is_refused(base, tmp_path, changes, received):
    folder = save_adapter(tmp_path / "adapter", adapted(base))
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match=rf"must describe plain LoRA. Received: .*{received}. Merge it with PEFT"):
        load_adapter(checkpoint.load(base).model, folder)


def test_an_adapter_that_does_not_fit_is_refused_and_changes_nothing(base, tmp_path):
    folder = save_adapter(tmp_path / "adapter", adapted(base))
    with pytest.raises(ValueError, match=r"must be without LoRA. Received: a model with LoRA at model.layers.0"):
        load_adapter(adapted(base), folder)
    other = CausalLM(dataclasses.replace(CONFIG, intermediate_dim=48))
    with pytest.raises(ValueError, match=r"whose model.layers.0.mlp.down_proj is \(32, 48\). Received: .* for \(32, 64\)"):
        load_adapter(other, folder)
    with pytest.raises(ValueError, match=r"which has no projection model.layers.1.mlp.down_proj. Use the model"):
        load_adapter(CausalLM(TINY), folder)
    assert len(other.trainable_weights) == len(CausalLM(other.config).trainable_weights)
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    tensors = load_file(folder / "adapter_model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=rf"pairs of .lora_A.weight and .lora_B.weight. Received otherwise: {name}"):
        load_adapter(other, folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match="adapter_config.json must be JSON"):
        load_adapter(other, folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="must hold adapter_config.json. It is missing"):
        load_adapter(other, folder)
