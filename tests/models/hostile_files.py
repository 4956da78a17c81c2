"""Fuzz targets: one a file that comes with a model. Each makes a good model's files, changes one of them as a seed
says, and uses the model to the end: opened, built, one step run, a text encoded and decoded.

What may come of it is an answer or an error of ours that names the file. The suite runs some hundred seeds a target
(test_hostile_files.py); for longer:

    python -m tests.models.hostile_files TARGET NUM_SEEDS [FIRST_SEED]
"""

from __future__ import annotations

import json
import logging
import random
import struct
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer as Encoder
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from octavo.config import BackendConfig, ModelConfig
from octavo.engine.tokenizer import open_tokenizer
from octavo.errors import InvalidRequestError, OctavoError, TokenizerError
from octavo.kernels.registry import HOST_BACKENDS
from octavo.llm import LLM
from octavo.models.gguf_config import FAMILIES as GGUF_FAMILIES
from octavo.models.loader import tokenizer_source
from octavo.models.registry import required_tensors
from octavo.observe.logging import LOGGER
from octavo.testing.tiny_models import TINY, make_tiny_model
from tests.models.architectures import ARCHITECTURES
from tests.models.gguf_files import TINY_LLAMA, tiny_llama_tensors, write_gguf
from tests.models.gguf_mutations import mutated_gguf
from tests.models.mutations import mutated_bytes, mutated_json

FilesOf = Callable[[str], dict[str, bytes]]  # name of a tiny model -> its files
Target = Callable[[random.Random, Path, FilesOf], str]

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


def run_seed(target: str, seed: int, folder: Path, files_of: FilesOf) -> str:
    """ "ok", or the error of ours. Raises whatever else the file does, and AssertionError for a nameless error."""
    rng = random.Random(zlib.crc32(target.encode()) + seed)
    folder.mkdir(parents=True, exist_ok=True)
    changed = TARGETS[target](rng, folder, files_of)
    try:
        _use(folder, changed)
    except OctavoError as error:
        message = str(error)
        assert len(message) < 2000, f"an error of {len(message)} characters"
        assert changed in message or str(folder) in message, f"the error does not name the file: {message}"
        return f"{type(error).__name__}: {message.replace(str(folder), '')}"
    return "ok"


def _use(folder: Path, changed: str) -> None:
    model = str(folder / "model.gguf" if (folder / "model.gguf").exists() else folder)
    if changed in _TEXT_FILES:
        _use_text(ModelConfig(model=model))
        return
    options: dict[str, Any] = {"num_gpu_blocks_override": 8, "max_num_seqs": 2, "max_num_batched_tokens": 16}
    llm = LLM(model, skip_tokenizer_init=True, backend=_backend(), num_threads=1, **options)
    try:
        params = llm.get_default_sampling_params().replace(max_tokens=2, detokenize=False)
        with suppress(InvalidRequestError):  # of a model that has room for no token, or draws none
            llm.generate({"prompt_token_ids": [0]}, params, use_tqdm=False)
    finally:
        llm.close()


def _use_text(config: ModelConfig) -> None:
    tokenizer = open_tokenizer(config, tokenizer_source(config))
    assert tokenizer is not None
    with suppress(InvalidRequestError, TokenizerError):  # of a decoder that is not known, a template that refuses
        ids = tokenizer.encode("a bc <s> é 漢\n")
        tokenizer.decode(ids)
        stream = tokenizer.stream()
        for token_id in ids:
            stream.push(token_id)
        if "default" in tokenizer.chat_templates:
            tokenizer.encode_chat([{"role": "user", "content": "abc"}])


@cache
def _backend() -> str:
    return "reference" if HOST_BACKENDS["cpu"](BackendConfig()).why_not() else "cpu"


@cache
def _made(name: str) -> dict[str, bytes]:
    """The files of a tiny model."""
    with tempfile.TemporaryDirectory() as folder:
        make_tiny_model(name, Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _write(folder: Path, files: dict[str, bytes]) -> None:
    for path in folder.iterdir():
        path.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _config(rng: random.Random, folder: Path, files_of: FilesOf) -> str:
    files = files_of(rng.choice(list(TINY)))
    config = json.loads(files["config.json"])
    if rng.random() < 0.3 and "rope_parameters" in config:
        config.pop("rope_parameters")
        config |= {"rope_theta": 1000.0, "rope_scaling": OLD_ROPE}
    _write(folder, files | {"config.json": mutated_json(rng, config)})
    return "config.json"


def _generation_config(rng: random.Random, folder: Path, files_of: FilesOf) -> str:
    _write(folder, files_of("llama") | {"generation_config.json": mutated_json(rng, GENERATION)})
    return "generation_config.json"


def _sharded(files: dict[str, bytes]) -> dict[str, bytes]:
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


def _index(rng: random.Random, folder: Path, files_of: FilesOf) -> str:
    files, name = _sharded(files_of("llama")), "model.safetensors.index.json"
    index = json.loads(files[name])
    if rng.random() < 0.5:  # a short one, so that changes hit what matters
        index["weight_map"] = dict(list(index["weight_map"].items())[:3])
    _write(folder, files | {name: mutated_json(rng, index)})
    return name


def _safetensors(rng: random.Random, folder: Path, files_of: FilesOf) -> str:
    files = files_of("llama")
    content = files["model.safetensors"]
    size = struct.unpack("<Q", content[:8])[0]
    if rng.random() < 0.2:
        changed = mutated_bytes(rng, content[: 8 + size]) + content[8 + size :]
    else:
        header = mutated_json(rng, json.loads(content[8 : 8 + size]))
        changed = struct.pack("<Q", len(header)) + header + content[8 + size :]
    _write(folder, files | {"model.safetensors": changed[: rng.choice((len(changed), len(changed) // 2))]})
    return "model.safetensors"


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
def _gguf_file(kind: str = "llama") -> bytes:
    """A tiny model of any family that GGUF has, as llama.cpp's converter names its keys and tensors."""
    a = replace(ARCHITECTURES[kind], tie_word_embeddings=True)
    keys = {
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
    extra: dict[str, Any] = {"general.sampling.temp": 0.5, "general.sampling.top_k": 5}
    code = next(code for code, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(code, a.num_layers)
    random_numbers = np.random.default_rng(0)
    tensors = {}
    for name, shape in required_tensors(a).items():
        stem, suffix = name.rsplit(".", 1)
        tensors[f"{names.get_name(stem)}.{suffix}"] = random_numbers.standard_normal(shape, dtype=np.float32)
    metadata = {f"{kind}.{key}": value for key, value in keys.items()} | extra | _SENTENCEPIECE
    with tempfile.TemporaryDirectory() as folder:
        return write_gguf(Path(folder) / "m.gguf", kind, metadata, tensors).read_bytes()


@cache
def _byte_level_gguf_file() -> bytes:
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


def _gguf(rng: random.Random, folder: Path, files_of: FilesOf) -> str:
    _write(folder, {"model.gguf": mutated_gguf(rng, _gguf_file(rng.choice(list(GGUF_FAMILIES))), "")})
    return "model.gguf"


def _gguf_tokenizer(rng: random.Random, folder: Path, files_of: FilesOf) -> str:
    file = rng.choice((_gguf_file, _byte_level_gguf_file))()
    _write(folder, {"model.gguf": mutated_gguf(rng, file, "tokenizer.")})
    return "tokenizer.ggml"


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
#: The file to change, and which others are beside it.
_TEXT_SETS = {
    "tokenizer.json": ("tokenizer_config.json",),
    "tokenizer_config.json": ("tokenizer.json", "special_tokens_map.json"),
    "special_tokens_map.json": ("tokenizer.json",),
    "vocab.json": ("merges.txt", "tokenizer_config.json"),
    "merges.txt": ("vocab.json",),
    "chat_template.json": ("tokenizer.json",),
    "chat_template.jinja": ("tokenizer.json",),
}
_TEXT_FILES = (*_TEXT_SETS, "tokenizer.ggml")


def _text_file(name: str) -> Target:
    def make(rng: random.Random, folder: Path, files_of: FilesOf) -> str:
        files = byte_level_files()
        kept = {other: files[other] for other in _TEXT_SETS[name]}
        is_json = name.endswith(".json")
        changed = mutated_json(rng, json.loads(files[name])) if is_json else mutated_bytes(rng, files[name])
        _write(folder, kept | {name: changed})
        return name

    return make


TARGETS: dict[str, Target] = {
    "config.json": _config,
    "generation_config.json": _generation_config,
    "index": _index,
    "safetensors": _safetensors,
    "gguf": _gguf,
    "gguf tokenizer": _gguf_tokenizer,
    **{name: _text_file(name) for name in _TEXT_SETS},
}


def main(target: str, num_seeds: int, first: int = 0) -> None:
    """Run many seeds, show each kind of failure once, and how often answers and errors came."""
    LOGGER.setLevel(logging.ERROR)
    begin, results, kinds = time.monotonic(), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        for seed in range(first, first + num_seeds):
            started = time.monotonic()
            try:
                result = run_seed(target, seed, folder, _made)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                result = "FAILED"
                frames = traceback.extract_tb(error.__traceback__)
                ours = [f"{frame.name}:{frame.lineno}" for frame in frames if "/octavo/" in frame.filename][-2:]
                kind = f"{type(error).__name__} at {' '.join(ours)}: {str(error)[:150]!r}"
                if kind not in kinds:
                    print(f"seed {seed}: {kind}", flush=True)
                kinds[kind] += 1
            results[result.split(":")[0]] += 1
            if time.monotonic() - started > 1:
                print(f"seed {seed}: slow, {time.monotonic() - started:.1f} s", flush=True)
    print(target, dict(results), f"{time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *(int(value) for value in sys.argv[3:4]))
