"""Tiny models' files, all valid: folders, shards, GGUF files of each family, tokenizers."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer as Encoder
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from octavo.models.registry import required_tensors
from tests.models.architectures import ARCHITECTURES
from tests.models.gguf_files import TINY_LLAMA, family_of, in_the_table, tiny_llama_tensors, write_gguf
from tests.tiny_models import make_tiny_model

GENERATION = {
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.9,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "max_new_tokens": 40,
}
OLD_ROPE = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32, "mscale": 1.0}
TEMPLATE = "{% for message in messages %}<s>{{ message.role }}: {{ message['content'] | trim }}\n{% endfor %}"


@cache
def made(name: str) -> dict[str, bytes]:
    """The files of a tiny model."""
    with tempfile.TemporaryDirectory() as folder:
        make_tiny_model(name, Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def sharded(files: dict[str, bytes]) -> dict[str, bytes]:
    """The same model in two files and an index."""
    files = dict(files)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "whole").write_bytes(files.pop("model.safetensors"))
        tensors = load_file(folder / "whole")
        weight_map = {tensor: f"part-{index % 2}.safetensors" for index, tensor in enumerate(tensors)}
        for part in sorted(set(weight_map.values())):
            save_file({key: tensors[key] for key in tensors if weight_map[key] == part}, folder / part)
            files[part] = (folder / part).read_bytes()
    return files | {"model.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": weight_map}).encode()}


_SENTENCEPIECE: dict[str, Any] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁a", "c", "é"],
    "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0],
    "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1, 1, 1, 1],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.chat_template": TEMPLATE,
}


@cache
def gguf_file(kind: str = "llama") -> bytes:
    """A tiny model of any family that GGUF has, as llama.cpp's converter names its keys and tensors."""
    a = replace(ARCHITECTURES[family_of(kind)], tie_word_embeddings=True)
    experts = None if a.experts is None else replace(a.experts, dense_layers=frozenset())
    a = replace(a, experts=experts)
    keys: dict[str, Any] = {
        "context_length": a.max_position_embeddings,
        "embedding_length": a.hidden_size,
        "block_count": a.num_layers,
        "feed_forward_length": a.intermediate_size,
        "attention.head_count": a.num_heads,
        "attention.head_count_kv": a.num_kv_heads,
        "attention.key_length": a.head_dim,
        "attention.value_length": a.head_dim,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.layer_norm_epsilon": 1e-5,
        "attention.sliding_window": 16,
        "rope.freq_base": 1e4,
        "rope.dimension_count": a.head_dim if a.rope is None else int(a.head_dim * a.rope.partial_rotary_factor),
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 32,
    }
    if experts is not None:
        keys |= {"expert_count": experts.routing.num_experts, "expert_used_count": experts.routing.num_chosen}
        keys["expert_feed_forward_length"] = experts.intermediate_size
        keys["expert_shared_feed_forward_length"] = max(1, experts.shared_size)
        if not kind.startswith("qwen"):
            keys["feed_forward_length"] = experts.intermediate_size
    extra: dict[str, Any] = {"general.sampling.temp": 0.5, "general.sampling.top_k": 5}
    code = next(code for code, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(code, a.num_layers)
    random_numbers = np.random.default_rng(0)
    tensors = {}
    for name, shape in required_tensors(a).items():
        stem, suffix = in_the_table(kind, name).rsplit(".", 1)
        if ".experts." in name and experts is not None:
            shape = (experts.routing.num_experts, *shape)
        tensors[f"{names.get_name(stem)}.{suffix}"] = random_numbers.standard_normal(shape, dtype=np.float32)
    metadata = {f"{kind}.{key}": value for key, value in keys.items()} | extra | _SENTENCEPIECE
    with tempfile.TemporaryDirectory() as folder:
        return write_gguf(Path(folder) / "m.gguf", kind, metadata, tensors).read_bytes()


@cache
def byte_level_gguf_file() -> bytes:
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "Ġa", "<s>", "</s>"]
    extra: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["a b", "Ġ a"],
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 2) + [3, 3],
        "tokenizer.ggml.bos_token_id": len(tokens) - 2,
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": TEMPLATE,
    }
    tensors = tiny_llama_tensors()
    tensors["token_embd.weight"] = np.resize(tensors["token_embd.weight"], (len(tokens), 32))
    with tempfile.TemporaryDirectory() as folder:
        return write_gguf(Path(folder) / "m.gguf", "llama", TINY_LLAMA | extra, tensors).read_bytes()


@cache
def byte_level_files() -> dict[str, bytes]:
    alphabet = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary = alphabet | {"ab": 256, "Ġa": 257, "<s>": 258, "</s>": 259}
    encoder = Encoder(models.BPE(vocab=vocabulary, merges=[("a", "b"), ("Ġ", "a")]))
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    encoder.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace("x", "y")])
    encoder.decoder = decoders.ByteLevel()
    encoder.add_special_tokens(["<s>", "</s>"])
    encoder.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 258)])
    merges = "#version: 0.2\na b\nĠ a\n"
    return {
        "tokenizer.json": encoder.to_str().encode(),
        "tokenizer_config.json": json.dumps(_TOKENIZER_CONFIG).encode(),
        "special_tokens_map.json": json.dumps({"bos_token": {"content": "<s>"}, "unk_token": "</s>"}).encode(),
        "vocab.json": json.dumps(vocabulary).encode(),
        "merges.txt": merges.encode(),
        "chat_template.json": json.dumps({"chat_template": TEMPLATE}).encode(),
        "chat_template.jinja": TEMPLATE.encode(),
    }


_TOKENIZER_CONFIG: dict[str, Any] = {
    "tokenizer_class": "GPT2Tokenizer",
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": {"content": "</s>", "lstrip": False},
    "added_tokens_decoder": {
        "258": {"content": "<s>", "special": True, "lstrip": False},
        "260": {"content": "<new>", "special": True, "lstrip": False, "rstrip": False, "normalized": False},
    },
    "chat_template": [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": TEMPLATE}],
    "model_max_length": 512,
}
