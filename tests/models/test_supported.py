"""The table of families, methods and backends: each pair in it runs, each other is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from octavo.errors import ConfigError, UnsupportedModelError
from octavo.kernels.cpu.device import CpuDevice
from octavo.kernels.reference.device import ReferenceDevice
from octavo.kernels.registry import BACKENDS
from octavo.models.config_json import MODEL_TYPES, architecture_from_config
from octavo.models.gguf_config import FAMILIES_READ
from octavo.models.registry import FAMILIES
from octavo.models.supported import METHODS, check_on, families_as, why_not_as, why_not_on
from octavo.quantization.registry import SCHEMES
from tests import support_tables
from tests.models.supported_pairs import CONFIGS, METHODS_RUN, architecture_of, logits_of

REFUSED = [(family, method) for family in FAMILIES for method in SCHEMES if why_not_as(family, method) is not None]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_pair_runs_on_the_hosts_backends(family: str, one_torch_thread: None) -> None:
    """In every format; activations of 15 bits, where the CPU rounds them at all."""
    cpu = CpuDevice(1, "int16")
    if reason := cpu.why_not():
        pytest.skip(reason)
    for method in METHODS_RUN:
        if why_not_as(family, method) is None:
            own, expected = (logits_of(device, family, method) for device in (cpu, ReferenceDevice()))
            assert np.isfinite(expected).all()
            error = np.linalg.norm(own - expected) / np.linalg.norm(expected)
            assert error < (1e-4 if method in ("dense", "fp8") else 2e-2), method


def test_methods_that_are_not_run_have_the_codes_of_those_that_are() -> None:
    def formats(methods: tuple[str, ...]) -> set[object]:
        found = {method: architecture_of("gpt_oss", method).quantization for method in methods if method in SCHEMES}
        name = "model.layers.0.mlp.experts.0.up_proj.weight"
        schemes = [each.scheme_of(name, (32, 64)) for each in found.values() if each is not None]
        return {(each.format.code, each.format.block) for each in schemes if each is not None and each.format}

    assert set(CONFIGS) == set(SCHEMES)
    assert formats(METHODS) == formats(METHODS_RUN)


@pytest.mark.parametrize(("family", "method"), REFUSED)
def test_a_pair_that_is_not_there_is_refused_by_name(family: str, method: str) -> None:
    """Before anything else of the configuration is read."""
    assert MODEL_TYPES[family][0] == family
    config = {"model_type": family, "quantization_config": {"quant_method": method, **CONFIGS[method]}}
    with pytest.raises(UnsupportedModelError, match=f"{family} in {method}: .*Octavo reads {family} as dense, awq"):
        architecture_from_config(Path("config.json"), config)


def test_a_backend_that_does_not_run_a_family_is_refused_by_name() -> None:
    refused = [(family, backend) for family in FAMILIES for backend in BACKENDS if why_not_on(family, backend)]
    assert ("mpnet", "triton") in refused
    for family, backend in refused:
        message = rf"model is of the family {family}, and backend is '{backend}': .*; set it to '\w+' or '\w+'"
        with pytest.raises(ConfigError, match=message):
            check_on(family, backend, "model")
        assert family not in families_as("dense", backend)


def test_gguf_files_hold_known_families() -> None:
    assert set(FAMILIES) >= FAMILIES_READ


def test_the_page_shows_the_tables_of_the_code() -> None:
    """If not: python -m tests.support_tables."""
    assert support_tables.PAGE.read_text(encoding="utf-8") == support_tables.page()
