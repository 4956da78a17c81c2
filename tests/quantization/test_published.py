"""Checkpoints as quantisers publish them: their numbers are exact, whole and in the parts of ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from octavo.errors import ConfigError
from octavo.kernels.device import Device
from octavo.kernels.reference.dequantize import dequantize
from octavo.kernels.scaled import ScaledTensor
from tests.models.drive import Driver, DriverSetting, greedy
from tests.quantization.folders import folder_of, matrices, opened
from tests.quantization.written_models import WRITTEN

#: one run of numbers, or blocks larger than a rank's part
WHOLE = ("bnb-nf4", "bnb-nf4-nested", "bnb-nf4-unsaid-nested", "fp8-blocks-128")
PROMPTS = [[3, 5, 8, 13, 21, 34], [7] * 20]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("published")


@pytest.mark.parametrize("kind", WRITTEN)
def test_the_numbers_are_exact(root: Path, kind: str) -> None:
    checkpoint, dense = (opened(folder_of(root, kind) / which) for which in ("quantised", "dense"))
    found = matrices(checkpoint)
    assert found
    for name, expected in matrices(dense).items():
        np.testing.assert_array_equal(dequantize(found[name].dense()), dequantize(expected.dense()), err_msg=name)
        compact = found[name].compact()
        assert isinstance(compact, ScaledTensor)
        assert compact.format == found[name].scheme.format
    assert not [name for name in checkpoint.leftovers() if "_proj" in name]


@pytest.mark.parametrize("kind", ["fp8-blocks-128", "ct-w8a8-zeros", "gptq-sorted", "bnb-nf4-nested"])
def test_a_model_answers_like_the_dense_one(root: Path, kind: str) -> None:
    from octavo.kernels.reference.device import ReferenceDevice

    backend: Device = ReferenceDevice()
    answers = []
    for which in ("quantised", "dense"):
        checkpoint = opened(folder_of(root, kind) / which)
        driver = Driver(backend, checkpoint.architecture, checkpoint, DriverSetting())
        answers.append(greedy(driver, PROMPTS, 8))
    (tokens, logits), (expected_tokens, expected_logits) = answers
    assert tokens == expected_tokens
    for one, other in zip(logits, expected_logits, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ["fp8-blocks", "awq", "gptq-8-zeros"])
def test_experts_are_quantised_and_their_router_is_not(root: Path, kind: str) -> None:
    from octavo.kernels.reference.device import ReferenceDevice

    logits: list[NDArray[np.float32]] = []
    for which in ("quantised", "dense"):
        checkpoint = opened(folder_of(root, kind, "qwen3-moe") / which)
        driver = Driver(ReferenceDevice(), checkpoint.architecture, checkpoint, DriverSetting())
        logits.append(driver.step({0: PROMPTS[0]})[0])
        assert not [name for name in checkpoint.leftovers() if "mlp" in name]
    np.testing.assert_array_equal(logits[0], logits[1])


@pytest.mark.parametrize("kind", ["fp8-blocks-128", "ct-w8a8-zeros", "ct-w8a16", "awq", "gptq", "ct-mxfp4"])
def test_the_cpu_multiplies_codes(root: Path, kind: str) -> None:
    """With activations of 15 bits, where they are rounded at all."""
    from octavo.kernels.cpu.device import CpuDevice
    from octavo.kernels.reference.device import ReferenceDevice

    cpu = CpuDevice(1, "int16")
    if reason := cpu.why_not():
        pytest.skip(reason)
    logits: list[NDArray[np.float32]] = []
    for device in (cpu, ReferenceDevice()):
        checkpoint = opened(folder_of(root, kind) / "quantised")
        driver = Driver(device, checkpoint.architecture, checkpoint, DriverSetting())
        logits.append(driver.step({0: PROMPTS[0]})[0])
    held = {each.dtype for name, each in cpu_parameters(cpu, root, kind).items() if "_proj" in name}
    assert held
    assert "F32" not in held
    np.testing.assert_allclose(logits[0], logits[1], rtol=0, atol=2e-3 * np.abs(logits[1]).max())


def cpu_parameters(cpu, root: Path, kind: str):
    checkpoint = opened(folder_of(root, kind) / "quantised")
    return Driver(cpu, checkpoint.architecture, checkpoint, DriverSetting()).compiled.parameters


@pytest.mark.parametrize("kind", [kind for kind in WRITTEN if kind not in WHOLE])
def test_the_parts_of_two_ranks_are_those_of_the_dense_model(root: Path, kind: str) -> None:
    checkpoint, dense = (opened(folder_of(root, kind) / which) for which in ("quantised", "dense"))
    whole = matrices(dense)
    for rank in (0, 1):
        for name, part in matrices(checkpoint, rank, 2).items():
            numbers = dequantize(whole[name].dense())
            cut = part.shard.cut(numbers.shape, rank, 2)
            entries = np.concatenate([np.arange(each.start, each.stop) for each in cut.slices])
            expected = np.take(numbers, entries, cut.dimension)
            np.testing.assert_array_equal(dequantize(part.dense()), expected, err_msg=f"{name} of rank {rank}")


@pytest.mark.parametrize(("kind", "why"), [("bnb-nf4", "ranks cannot share"), ("fp8-blocks-128", "blocks of 128")])
def test_what_ranks_cannot_share_is_refused(root: Path, kind: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        matrices(opened(folder_of(root, kind) / "quantised"), 0, 2)
