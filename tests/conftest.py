"""What tests of whole models share: tiny checkpoints, made once a session, and the host's backends.

torch and transformers are imported by the fixtures that need them, so that the tests of everything else start
at once.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from octavo.config import BackendConfig
from octavo.kernels.device import Device
from octavo.kernels.registry import HOST_BACKENDS

TinyFolder = Callable[..., Path]

# The same examples in every run. To look for others: pytest --hypothesis-profile=default
settings.register_profile("same", derandomize=True)
settings.load_profile("same")

# A shell without job control has what it starts in the background ignore Ctrl-C, and that is inherited: programs which
# tests interrupt would not notice.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def one_torch_thread() -> Iterator[None]:
    """For tiny matrices, and for machines with other work: threads would only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, one_torch_thread: None) -> TinyFolder:
    """name of TINY, seed, dtype -> folder."""
    from octavo.testing.tiny_models import make_tiny_model

    made: dict[tuple[str, int, str], Path] = {}

    def get(name: str, seed: int = 0, dtype: str = "float32") -> Path:
        key = (name, seed, dtype)
        if key not in made:
            made[key] = make_tiny_model(name, tmp_path_factory.mktemp("tiny") / name, seed=seed, dtype=dtype)
        return made[key]

    return get


@pytest.fixture(params=list(HOST_BACKENDS))
def backend(request: pytest.FixtureRequest) -> Device:
    chosen = HOST_BACKENDS[request.param](BackendConfig(), 0)
    if (reason := chosen.why_not()) is not None:
        pytest.skip(reason)
    return chosen
