"""From a model's name to an open Checkpoint.

smollm2, gemma3-270m, ...  a packaged model             packaged.py
path/to/file.gguf         a GGUF file                   gguf.py, gguf_parts.py, gguf_config.py, gguf_names.py
path/to/folder            a Hugging Face folder         folder.py, config_json.py, safetensors.py
owner/name                the same, from the hub        hub.py
owner/name:file.gguf      a GGUF file from the hub
any, load_format=dummy    its configuration only        dummy.py
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from octavo.config import ModelConfig
from octavo.errors import ConfigError, ModelLoadError, OutOfMemoryError
from octavo.kernels.reference.dequantize import convert as convert_in_numpy
from octavo.kernels.tensor import (
    BLOCK_DTYPES,
    PART_DTYPES,
    Cut,
    DType,
    HostTensor,
    StoredTensor,
    cuts_blocks,
    num_bytes,
    take_part,
)
from octavo.models.checkpoint import Checkpoint
from octavo.models.conversion import as_asked
from octavo.models.dummy import dummy_tensors
from octavo.models.folder import open_config, open_folder, saved_dtype
from octavo.models.gguf_config import architecture_from_gguf
from octavo.models.gguf_experts import experts_apart
from octavo.models.gguf_latent import joined_latents
from octavo.models.gguf_metadata import GGUFMetadata
from octavo.models.gguf_names import canonical_name, layout_change
from octavo.models.gguf_parts import read_gguf_model
from octavo.models.located import locate
from octavo.models.registry import parameters_of, quantised_tensors, required_tensors
from octavo.models.stacked_experts import in_dense_stacks, taken_apart
from octavo.models.weights import TensorTable
from octavo.observe.machine import memory
from octavo.quantization.as_stored import as_stored
from octavo.quantization.at_load import FORMATS, as_dummy, at_load

Convert = Callable[[HostTensor, DType], HostTensor]

_DTYPES: dict[str, DType] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def open_checkpoint(
    config: ModelConfig, convert: Convert = convert_in_numpy, *, draws_on_device: bool = False
) -> Checkpoint:
    """Find a model, read its configuration, and check that every tensor it needs exists; no tensor is read yet.
    convert: changes a tensor's dtype when it is read. draws_on_device: the backend draws dummy matrices."""
    path = locate(config)
    if config.load_format == "dummy":
        return _open_dummy(path, config, draws_on_device)
    checkpoint = open_gguf(path, config.model) if path.is_file() else _open_folder(path, config.model)
    checkpoint = _quantised(_as_asked(checkpoint, config), config.quantization)
    checkpoint.check(_required(checkpoint))
    return checkpoint if config.dtype == "auto" else _converted(checkpoint, _DTYPES[config.dtype], convert)


def open_gguf(path: Path, label: str) -> Checkpoint:
    file = read_gguf_model(path)
    architecture = architecture_from_gguf(file)
    kind = file.metadata["general.architecture"]
    stored: dict[str, StoredTensor] = {}
    for gguf_name, tensor in file.tensors.items():
        name = canonical_name(kind, gguf_name)
        if name is None:
            continue
        change = layout_change(kind, name, architecture)
        for own_name, entry in experts_apart(name, tensor).items():
            stored[own_name] = entry if change is None else entry.then(change)
    return Checkpoint(
        label=label,
        architecture=architecture,
        stored=joined_latents(stored, architecture, label),
        tokenizer_source=file,
        sampling_defaults=GGUFMetadata(file).sampling_defaults(),
    )


def _open_folder(path: Path, label: str) -> Checkpoint:
    checkpoint = _as_stored(open_folder(path, label))
    return taken_apart(checkpoint, _required(checkpoint))


def _as_stored(checkpoint: Checkpoint) -> Checkpoint:
    """Quantised as the tensors themselves say, where the configuration errs."""
    architecture = checkpoint.architecture
    if architecture.quantization is None:
        return checkpoint
    table = parameters_of(architecture)
    dense = in_dense_stacks(checkpoint, table)
    found = as_stored(architecture.quantization, table, checkpoint.stored, dense, checkpoint.label)
    return replace(checkpoint, architecture=replace(architecture, quantization=found))


def _as_asked(checkpoint: Checkpoint, config: ModelConfig) -> Checkpoint:
    return replace(checkpoint, architecture=as_asked(checkpoint.architecture, config, checkpoint.label))


def _required(checkpoint: Checkpoint) -> TensorTable:
    """The tensors that the model needs. Raises ModelLoadError if its sizes do not fit its quantisation."""
    try:
        return required_tensors(checkpoint.architecture)
    except ModelLoadError as error:
        raise type(error)(f"{checkpoint.label}: {error}") from None


def _quantised(checkpoint: Checkpoint, asked: str | None) -> Checkpoint:
    """The same checkpoint, to be quantised as it is read if a dense one is asked to be."""
    architecture = checkpoint.architecture
    found = None if architecture.quantization is None else architecture.quantization.method
    if found is None and any(dtype in BLOCK_DTYPES for dtype in checkpoint.dtypes):
        found = "gguf"
    if asked in (None, found):
        return checkpoint
    if found is None and asked in FORMATS:
        return replace(checkpoint, architecture=replace(architecture, quantization=at_load(asked)))
    allowed = f"it is quantised as {found}: leave the option out" if found else f"it is dense: {', '.join(FORMATS)}"
    raise ConfigError(f"quantization is {asked!r}, which does not fit {checkpoint.label}; {allowed}")


def _open_dummy(path: Path, config: ModelConfig, draws_on_device: bool) -> Checkpoint:
    if path.is_file():
        checkpoint, dtype = open_gguf(path, config.model), "bfloat16"
    else:
        checkpoint, dtype = open_config(path, config.model), saved_dtype(path)
    if config.dtype != "auto":
        dtype = config.dtype
    if dtype not in _DTYPES:
        raise ModelLoadError(f"{path}: dtype is {dtype!r}; allowed: {', '.join(_DTYPES)}")
    checkpoint = replace(checkpoint, stored={})
    if (stated := checkpoint.architecture.quantization) is not None:
        checkpoint = replace(checkpoint, architecture=replace(checkpoint.architecture, quantization=as_dummy(stated)))
    checkpoint = _quantised(_as_asked(checkpoint, config), config.quantization)
    required = required_tensors(checkpoint.architecture)
    if not draws_on_device:
        _check_room(path, sum(num_bytes(_DTYPES[dtype], shape) for shape in required.values()))
    drawn = dummy_tensors(checkpoint.architecture, required, _DTYPES[dtype], config.seed, on_device=draws_on_device)
    return checkpoint.with_tensors(drawn)


def _check_room(path: Path, needed: int) -> None:
    """A configuration without weights may describe a model too large for any machine."""
    total, _ = memory()
    if needed > total:
        raise OutOfMemoryError(
            f"{path}: dummy weights of its configuration take {needed / 2**30:,.1f} GiB, this machine has "
            f"{total / 2**30:,.1f} GiB; take a smaller configuration, or fewer layers"
        )


def _converted(checkpoint: Checkpoint, dtype: DType, convert: Convert) -> Checkpoint:
    """The same checkpoint; every tensor is converted to one dense dtype when it is read, but for quantised matrices:
    kernels multiply these as they are."""
    quantised = quantised_tensors(checkpoint.architecture)

    def one(name: str, tensor: StoredTensor) -> StoredTensor:
        def read(stored: StoredTensor = tensor) -> HostTensor:
            try:
                return convert(stored.read(), dtype)
            except OverflowError as error:
                raise ModelLoadError(f"{checkpoint.label}: tensor {name!r}: {error}; choose another dtype") from None

        def read_part(cut: Cut) -> HostTensor:
            return take_part(read(), cut) if cuts_blocks(tensor.dtype, cut) else read(tensor.part(cut))

        return StoredTensor(dtype, tensor.shape, read, read_part)

    def kept(name: str, tensor: StoredTensor) -> StoredTensor:
        return tensor if name in quantised or tensor.dtype in PART_DTYPES else one(name, tensor)

    return checkpoint.with_tensors({name: kept(name, tensor) for name, tensor in checkpoint.stored.items()})
