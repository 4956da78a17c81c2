"""PEFT folders, good and malformed: what fits is read, and anything else is our own error that names what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("safetensors")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from octavo.errors import ModelLoadError
from octavo.kernels.adapters import AdaptedModule, AdaptedPart, AdapterSizes, AdapterTarget
from octavo.lora.folder import Adapter, check_adapter
from tests.lora.written_adapters import PREFIX, Arrays, write_adapter

HIDDEN, INNER, VOCAB = 8, 12, 10
LAYER = "model.layers.{}."
TARGETS = (
    *(AdapterTarget(f"{LAYER}self_attn.q_proj".format(i), (HIDDEN, HIDDEN)) for i in range(2)),
    *(AdapterTarget(f"{LAYER}mlp.down_proj".format(i), (HIDDEN, INNER)) for i in range(2)),
    AdapterTarget("model.embed_tokens", (HIDDEN, VOCAB), is_table=True),
    AdapterTarget("lm_head", (VOCAB, HIDDEN)),
)
Q0 = "model.layers.0.self_attn.q_proj"
Change = Callable[[dict[str, Any], Arrays], None]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    shapes = {target.name: target.shape[::-1] if target.is_table else target.shape for target in TARGETS}
    save_file(
        {f"{name}.weight": np.zeros(shape, np.float32) for name, shape in shapes.items()}, folder / "model.safetensors"
    )
    return folder


def check(folder: Path, max_rank: int = 16) -> Any:
    return check_adapter(folder, TARGETS, "llama", max_rank)


def read(folder: Path) -> Adapter:
    return Adapter.read(folder, TARGETS, "llama", 16, "auto")


def module(*names: str, **slices: Any) -> AdaptedModule:
    shapes = {target.name: target for target in TARGETS}
    parts = tuple(AdaptedPart(name, shapes[name].shape, **slices) for name in names)
    return AdaptedModule(parts, AdapterSizes(2, 16), shapes[names[0]].is_table)


def test_the_scale_is_in_b_and_a_missing_part_is_zero(model: Path, tmp_path: Path) -> None:
    settings = {"use_rslora": True, "lora_alpha": 6, "rank_pattern": {"layers.0.self_attn.q_proj": 3}}
    settings |= {"alpha_pattern": {"^model.layers.1.self_attn.q_proj$": 10}}
    folder = write_adapter(tmp_path / "a", model, ("q_proj",), rank=4, dtype=np.float16, change=_narrow(3), **settings)
    tensors, adapter = load_file(folder / "adapter_model.safetensors"), read(folder)
    both = adapter.weights(module(Q0, Q0.replace("0", "1")))
    assert both is not None
    assert both.rank == 4
    a, b = (tensors[f"{PREFIX}{Q0}.lora_{which}.weight"].astype(np.float32) for which in "AB")
    np.testing.assert_array_equal(both.a[:3], a)
    assert not both.a[3:16].any()
    np.testing.assert_allclose(both.b[:HIDDEN, :3], b * 6 / 3**0.5, rtol=1e-6)
    other = tensors[f"{PREFIX}{Q0.replace('0', '1')}.lora_B.weight"].astype(np.float32)
    np.testing.assert_allclose(both.b[HIDDEN:, :4], other * 10 / 4**0.5, rtol=1e-6)
    assert adapter.weights(module("lm_head")) is None
    part = adapter.weights(module(Q0, outputs=(slice(1, 3), slice(6, 8))))
    assert part is not None
    np.testing.assert_array_equal(part.b, both.b[[1, 2, 6, 7]])


def _narrow(rank: int) -> Change:
    """The first layer's matrices get another rank than the rest."""

    def change(config: dict[str, Any], tensors: Arrays) -> None:
        tensors[f"{PREFIX}{Q0}.lora_A.weight"] = tensors[f"{PREFIX}{Q0}.lora_A.weight"][:rank]
        tensors[f"{PREFIX}{Q0}.lora_B.weight"] = tensors[f"{PREFIX}{Q0}.lora_B.weight"][:, :rank].copy()

    return change


def test_embedding_head_and_layers_that_are_named(model: Path, tmp_path: Path) -> None:
    ends = check(write_adapter(tmp_path / "ends", model, ("embed_tokens", "lm_head"), change=_with_base))
    assert set(ends.pairs) == {"model.embed_tokens", "lm_head"}
    some = write_adapter(tmp_path / "some", model, ("q_proj",), change=_without("layers.0"), layers_to_transform=[1])
    assert set(check(some).pairs) == {Q0.replace("0", "1")}
    pattern = write_adapter(
        tmp_path / "pattern", model, ("q_proj",), change=_without("layers.1"), target_modules=".*0.*q_proj"
    )
    assert set(check(pattern).pairs) == {Q0}
    everything = write_adapter(tmp_path / "all", model, ("q_proj", "down_proj"), target_modules="all-linear")
    assert len(check(everything).pairs) == 4


def _with_base(config: dict[str, Any], tensors: Arrays) -> None:
    """PEFT saves the numbers of an embedding that it adapts."""
    tensors[f"{PREFIX}model.embed_tokens.base_layer.weight"] = np.zeros((VOCAB, HIDDEN), np.float32)


def _without(name: str) -> Change:
    def change(config: dict[str, Any], tensors: Arrays) -> None:
        for key in [key for key in tensors if name in key]:
            del tensors[key]

    return change


def _setting(**values: Any) -> Change:
    return lambda config, tensors: config.update(values)


def _tensor(name: str, *shape: int, dtype: Any = np.float32) -> Change:
    return lambda config, tensors: tensors.update({PREFIX + name: np.zeros(shape, dtype)})


#: what is wrong -> what the error says
WRONG: list[tuple[Change, str]] = [
    (_setting(use_dora=True), "use_dora is True"),
    (_setting(modules_to_save=["lm_head"]), "modules_to_save is"),
    (_setting(bias="all"), "bias is 'all'"),
    (_setting(peft_type="IA3"), "peft_type is 'IA3'"),
    (_setting(init_lora_weights="pissa_niter_4"), "init_lora_weights is 'pissa_niter_4'"),
    (_setting(r=257), "r is 257; allowed: 1 to 256"),
    (_setting(r=5), r"lora_A.weight' has shape \[4, 8\]; the model, and a rank of 5"),
    (_setting(lora_alpha="x"), "lora_alpha is 'x'"),
    (_setting(rank_pattern={"(a+)+b": 2}), r"rank_pattern has the key '\(a\+\)\+b'; allowed are names"),
    (_setting(target_modules=["q_proj", "down_proj"]), "mlp.down_proj.lora_A.weight' is missing"),
    (_setting(target_modules=["v_proj"]), "q_proj.lora_A.weight' is there, though"),
    (_setting(layers_to_transform=[0]), "layers.1.self_attn.q_proj.lora_A.weight' is there, though"),
    (_setting(target_modules=[7]), "target_modules is"),
    (_tensor("model.layers.0.mlp.experts.gate_proj.lora_A.weight", 4, 8), "is no matrix of this model"),
    (_tensor("vision_tower.q_proj.lora_A.weight", 4, 8), "is no matrix of this model"),
    (_tensor(f"{Q0}.lora_magnitude_vector", 8), "is of DoRA"),
    (_tensor(f"{Q0}.lora_B.bias", 8), "is a bias"),
    (_tensor("lm_head.weight", VOCAB, HIDDEN), "is no part of a LoRA adapter"),
    (_tensor("model.embed_tokens.base_layer.weight", VOCAB + 1, HIDDEN), "cannot change the vocabulary"),
    (_tensor("model.embed_tokens.lora_A.weight", 4, 8), "does not fit 'model.embed_tokens', which is an embedding"),
    (_tensor(f"{Q0}.lora_A.weight", 4, 8, dtype=np.int32), "is I32, allowed are BF16, F16, F32"),
    (_tensor(f"{Q0}.lora_A.weight", 4, 8, dtype=np.float64), "has dtype 'F64'"),
    (_without(f"{Q0}.lora_B"), "q_proj.lora_A.weight' has no B beside it"),
    (_without("lora"), "holds no matrices of an adapter"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_what_does_not_fit_is_named(change: Change, message: str, model: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", model, ("q_proj",), change=change)
    with pytest.raises(ModelLoadError, match=message):
        check(folder)


def test_missing_files_and_pickles(model: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", model, ("q_proj",))
    with pytest.raises(ModelLoadError, match="allowed is max_lora_rank = 2"):
        check(folder, max_rank=2)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelLoadError, match="is a pickle"):
        check(folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(ModelLoadError, match=r"/a holds no adapter_model.safetensors; allowed is an adapter's folder"):
        check(folder)
    with pytest.raises(ModelLoadError, match=r"/b is no folder; allowed is an adapter's folder as PEFT saves it"):
        check(tmp_path / "b")


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
JSON = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=8), SCALARS, max_size=3)
KEYS = (
    *("r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "rank_pattern", "alpha_pattern"),
    *("use_rslora", "bias", "peft_type", "use_dora", "init_lora_weights", "base_model_name_or_path"),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(KEYS), JSON, min_size=1, max_size=3), st.integers(0, 2000), st.integers(0, 255))
def test_any_settings_and_bytes_are_read_or_refused(
    model: Path, tmp_path: Path, changes: dict[str, Any], cut: int, flip: int
) -> None:
    """First the settings are wrong, then the settings are right and the file is not."""
    folder = write_adapter(tmp_path / "fuzzed", model, ("q_proj",), rank=1)
    path, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    good = config.read_text()
    config.write_text(json.dumps(json.loads(good) | changes))
    _read_or_refuse(folder)
    config.write_text(good)
    data = bytearray(path.read_bytes())
    data[cut % len(data)] ^= flip
    path.write_bytes(data[: len(data) - cut % 7])
    _read_or_refuse(folder)


def _read_or_refuse(folder: Path) -> None:
    try:
        adapter = read(folder)
    except ModelLoadError as error:
        assert str(folder) in str(error)  # noqa: PT017
        return
    for target in TARGETS:
        adapter.weights(module(target.name))
