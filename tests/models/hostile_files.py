"""Fuzz targets, one for each file that comes with a model. Each creates a valid model's files, changes one of them by a
seed, and uses the model: opens and builds it, runs a step, encodes and decodes a text.

The result must be an answer, or one of Octavo's errors that names the file. The suite runs a few hundred seeds per
target (test_hostile_files.py); to run more:

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
from functools import cache
from pathlib import Path
from typing import Any

from octavo.config import BackendConfig, ModelConfig
from octavo.errors import InvalidRequestError, OctavoError, TokenizerError
from octavo.kernels.registry import HOST_BACKENDS, ONE_RANK
from octavo.llm import LLM
from octavo.models.gguf_config import FAMILIES as GGUF_FAMILIES
from octavo.models.located import tokenizer_source
from octavo.observe.logging import LOGGER
from octavo.text.tokenizer import open_tokenizer
from tests.models.gguf_mutations import mutated_gguf
from tests.models.good_files import (
    GENERATION,
    OLD_ROPE,
    byte_level_files,
    byte_level_gguf_file,
    gguf_file,
    made,
    sharded,
)
from tests.models.mutations import mutated_bytes, mutated_json
from tests.tiny_models import TINY

FilesOf = Callable[[str], dict[str, bytes]]  # name of a tiny model -> its files
Target = Callable[[random.Random, Path, FilesOf], str]


def run_seed(target: str, seed: int, folder: Path, files_of: FilesOf) -> str:
    """ "ok", or Octavo's error. Raises any other exception, and AssertionError if the error does not name the file."""
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
    tokenizer = open_tokenizer(config, lambda: tokenizer_source(config))
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
    return "reference" if HOST_BACKENDS["cpu"](BackendConfig(), ONE_RANK).why_not() else "cpu"


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


def _index(rng: random.Random, folder: Path, files_of: FilesOf) -> str:
    files, name = sharded(files_of("llama")), "model.safetensors.index.json"
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


def _gguf(rng: random.Random, folder: Path, files_of: FilesOf) -> str:
    _write(folder, {"model.gguf": mutated_gguf(rng, gguf_file(rng.choice(list(GGUF_FAMILIES))), "")})
    return "model.gguf"


def _gguf_tokenizer(rng: random.Random, folder: Path, files_of: FilesOf) -> str:
    file = rng.choice((gguf_file, byte_level_gguf_file))()
    _write(folder, {"model.gguf": mutated_gguf(rng, file, "tokenizer.")})
    return "tokenizer.ggml"


#: The file to change, and the other files in the folder.
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
                result = run_seed(target, seed, folder, made)
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
