"""GGUF files with experts: the same model as the folder they are made from, dense and quantised; and bad numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

from safetensors.numpy import load_file  # noqa: E402

from octavo.config import ModelConfig  # noqa: E402
from octavo.errors import ModelLoadError, UnsupportedModelError  # noqa: E402
from octavo.kernels.cpu.device import CpuDevice  # noqa: E402
from octavo.kernels.reference.device import ReferenceDevice  # noqa: E402
from octavo.kernels.tensor import StoredTensor  # noqa: E402
from octavo.models.checkpoint import Checkpoint  # noqa: E402
from octavo.models.loader import open_checkpoint  # noqa: E402
from tests.models.drive import Driver, DriverSetting, greedy  # noqa: E402
from tests.models.gguf_files import TINY_LLAMA, Tensor, in_the_table, tiny_llama_tensors, write_gguf  # noqa: E402
from tests.tiny_models import make_tiny_model  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

SIZES = {"hidden_size": 64, "head_dim": 16, "moe_intermediate_size": 32, "intermediate_size": 96}
KINDS = {
    "mixtral": "llama",
    "qwen2-moe": "qwen2moe",
    "qwen3-moe": "qwen3moe",
    "olmoe": "olmoe",
    "granite-moe": "granitemoe",
    "gpt-oss": "gpt-oss",
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name = request.param
    changes: dict[str, Any] = {"num_attention_heads": 4} | ({"sliding_window": None} if name == "mixtral" else {})
    changes |= {"shared_expert_intermediate_size": 64, "mlp_only_layers": []} if name == "qwen2-moe" else {}
    changes |= {"swiglu_limit": 7.0} if name == "gpt-oss" else {}
    return make_tiny_model(name, tmp_path_factory.mktemp("experts") / name, **SIZES | changes)


def metadata(checkpoint: Checkpoint, kind: str) -> dict[str, Any]:
    a = checkpoint.architecture
    assert a.experts is not None
    assert a.rope is not None
    values = {
        "context_length": a.max_position_embeddings,
        "embedding_length": a.hidden_size,
        "block_count": a.num_layers,
        "feed_forward_length": a.intermediate_size,
        "attention.head_count": a.num_heads,
        "attention.head_count_kv": a.num_kv_heads,
        "attention.key_length": a.head_dim,
        "attention.value_length": a.head_dim,
        "attention.layer_norm_rms_epsilon": a.norm_eps,
        "rope.freq_base": a.rope.theta,
        "expert_count": a.experts.routing.num_experts,
        "expert_used_count": a.experts.routing.num_chosen,
        "expert_feed_forward_length": a.experts.intermediate_size,
    }
    if kind == "granitemoe":
        scales = {"embedding_scale": a.embedding_scale, "residual_scale": a.residual_scale}
        values |= scales | {"attention.scale": a.attention_scale, "logit_scale": 1 / a.logits_scale}
    if (scaling := a.rope.scaling) is not None:
        values |= {"rope.scaling.type": scaling["rope_type"], "rope.scaling.factor": scaling["factor"]}
        values["rope.scaling.original_context_length"] = scaling["original_max_position_embeddings"]
    if kind == "gpt-oss":
        values["attention.sliding_window"] = a.windows[0]
    if a.experts.shared_size:
        values["expert_shared_feed_forward_length"] = a.experts.shared_size
    tokens = {"tokenizer.ggml.tokens": [f"t{i}" for i in range(a.vocab_size)]}
    return {f"{kind}.{key}": value for key, value in values.items()} | tokens


def tensors(folder: Path, kind: str, quantised: str | None) -> dict[str, Tensor]:
    """As llama.cpp's converter makes them: experts stacked, and Llama's Q and K rows interleaved."""
    code = next(code for code, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    table = gguf.get_tensor_name_map(code, 4)
    stacks: dict[str, list[np.ndarray[Any, Any]]] = {}
    found: dict[str, Tensor] = {}
    saved = _each_expert(load_file(folder / "model.safetensors"))
    for name, values in sorted(saved.items(), key=_by_expert):
        theirs = table.get_name(in_the_table(kind, name), (".weight", ".bias"))
        assert theirs is not None, name
        if ".experts." in name:
            stacks.setdefault(theirs, []).append(values)
        elif kind in ("llama", "granitemoe") and ("q_proj" in name or "k_proj" in name):
            found[theirs] = values.reshape(-1, 2, 8, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        else:
            found[theirs] = values[0] if "shexp" in theirs and len(values) == 1 else values
    stacked = {name: np.stack(each) for name, each in stacks.items()}
    return found | {name: (each, quantised) if quantised and each.ndim > 2 else each for name, each in stacked.items()}


def _each_expert(saved: dict[str, Any]) -> dict[str, Any]:
    """Granite's stacks as a matrix of gate, up or down for each expert, and for the shared one; gpt-oss's as well."""
    found: dict[str, Any] = {}
    for name, values in saved.items():
        if ".mlp.experts." in name and values.shape[0] == 5:
            found |= _of_gpt_oss(name, values)
            continue
        module, _, kind = name.removesuffix(".weight").rpartition(".")
        if kind not in ("input_linear", "output_linear"):
            found[name] = values
            continue
        parts = ("gate_proj", "up_proj") if kind == "input_linear" else ("down_proj",)
        for expert, matrix in enumerate(values if values.ndim == 3 else [values]):
            where = f"{module}.experts.{expert}" if values.ndim == 3 else module
            found |= {
                f"{where}.{one}.weight": each for one, each in zip(parts, np.split(matrix, len(parts)), strict=True)
            }
    return found


def _of_gpt_oss(name: str, values: Any) -> dict[str, Any]:
    """Outputs are its last dimension, and those of gate and up take turns."""
    where, kind = name.removesuffix("_bias").rsplit(".", 1)
    ending = "bias" if name.endswith("_bias") else "weight"
    parts = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
    return {
        f"{where}.{expert}.{part}.{ending}": np.ascontiguousarray(values[expert].T[at :: len(parts)])
        for expert in range(len(values))
        for at, part in enumerate(parts)
    }


def _by_expert(entry: tuple[str, Any]) -> tuple[str, int]:
    whole, _, rest = entry[0].partition(".experts.")
    return whole, int(rest.partition(".")[0] or 0)


def test_a_file_has_the_folders_tensors(folder: Path, tmp_path: Path) -> None:
    kind, original = KINDS[folder.name], open_checkpoint(ModelConfig(model=str(folder)))
    path = write_gguf(tmp_path / "m.gguf", kind, metadata(original, kind), tensors(folder, kind, None))
    checkpoint = open_checkpoint(ModelConfig(model=str(path)))
    assert checkpoint.architecture.family == original.architecture.family
    ours, theirs = checkpoint.architecture.experts, original.architecture.experts
    assert ours is not None
    assert theirs is not None
    assert ours.dense_layers == theirs.dense_layers
    assert (ours.shared_size, ours.has_shared_gate) == (theirs.shared_size, theirs.has_shared_gate)
    assert (ours.routing, ours.gate) == (theirs.routing, theirs.gate)
    if kind == "gpt-oss":
        assert checkpoint.architecture.rope == original.architecture.rope
        assert checkpoint.architecture.windows == original.architecture.windows
    for scale in ("embedding_scale", "residual_scale", "logits_scale"):
        assert getattr(checkpoint.architecture, scale) == pytest.approx(getattr(original.architecture, scale))
    assert_same(checkpoint, original)


def test_gate_and_up_may_be_one_stack(folder: Path, tmp_path: Path) -> None:
    kind, original = KINDS[folder.name], open_checkpoint(ModelConfig(model=str(folder)))
    written = tensors(folder, kind, None)
    for name in [name for name in written if "ffn_gate_exps" in name]:
        both = [written.pop(each) for each in (name, name.replace("gate", "up"))]
        written[name.replace("gate", "gate_up")] = np.concatenate([np.asarray(each) for each in both], axis=1)
    path = write_gguf(tmp_path / "m.gguf", kind, metadata(original, kind), written)
    assert_same(open_checkpoint(ModelConfig(model=str(path))), original)


@pytest.mark.parametrize("folder", ["mixtral"], indirect=True)
def test_each_expert_may_be_a_tensor(folder: Path, tmp_path: Path) -> None:
    """As in files of Mixtral from early 2024."""
    original, written = open_checkpoint(ModelConfig(model=str(folder))), tensors(folder, "llama", None)
    for name in [name for name in written if name.endswith("_exps.weight")]:
        stem, stack = name.removesuffix("_exps.weight"), np.asarray(written.pop(name))
        written |= {f"{stem}.{expert}.weight": matrix for expert, matrix in enumerate(stack)}
    path = write_gguf(tmp_path / "m.gguf", "llama", metadata(original, "llama"), written)
    assert_same(open_checkpoint(ModelConfig(model=str(path))), original)


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    assert set(one.stored) == set(other.stored)
    for name, tensor in other.stored.items():
        assert np.array_equal(numbers(one.stored[name]), numbers(tensor)), name


def numbers(tensor: StoredTensor) -> np.ndarray[Any, Any]:
    return tensor.read().data.view(np.float32).reshape(tensor.shape)


def test_quantised_experts_on_the_cpu(folder: Path, tmp_path: Path) -> None:
    kind, original = KINDS[folder.name], open_checkpoint(ModelConfig(model=str(folder)))
    path = write_gguf(
        tmp_path / "m.gguf",
        kind,
        metadata(original, kind),
        tensors(folder, kind, "MXFP4" if kind == "gpt-oss" else "Q8_0"),
    )
    checkpoint, logits = open_checkpoint(ModelConfig(model=str(path))), []
    for device in (CpuDevice(2, "int16"), ReferenceDevice()):
        driver = Driver(device, checkpoint.architecture, checkpoint, DriverSetting())
        logits.append(np.concatenate(greedy(driver, [[3, 4, 5, 6, 7], [9]], 2)[1]))
    assert np.abs(logits[0] - logits[1]).max() <= 2e-3 * np.abs(logits[1]).max()


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [("expert_used_count", 7, "1 to [56]"), ("expert_count", 5000, "1 to 4096"), ("expert_used_count", 0, "1")],
)
def test_numbers_that_cannot_be_are_refused_by_their_key(
    key: str, value: int, allowed: str, folder: Path, tmp_path: Path
) -> None:
    kind, original = KINDS[folder.name], open_checkpoint(ModelConfig(model=str(folder)))
    changed = metadata(original, kind) | {f"{kind}.{key}": value}
    path = write_gguf(tmp_path / "m.gguf", kind, changed, tensors(folder, kind, None))
    with pytest.raises(ModelLoadError, match=f"{key}.*is {value}.*allowed.*{allowed}"):
        open_checkpoint(ModelConfig(model=str(path)))


def test_experts_of_other_architectures_are_refused_by_name(tmp_path: Path) -> None:
    keys = {key.replace("llama.", "gemma2."): value for key, value in TINY_LLAMA.items()} | {"gemma2.expert_count": 4}
    path = write_gguf(tmp_path / "m.gguf", "gemma2", keys, tiny_llama_tensors())
    with pytest.raises(
        UnsupportedModelError, match=r"gemma2\.expert_count is 4; Octavo reads experts of deepseek2, gpt-oss"
    ):
        open_checkpoint(ModelConfig(model=str(path)))
