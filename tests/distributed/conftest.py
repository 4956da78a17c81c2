"""Engines whose ranks are threads, and tiny models with the heads that a number of ranks needs."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from octavo import LLM
from octavo.config import EngineConfig
from octavo.engine import assemble
from octavo.worker.task import WorkerTask

if TYPE_CHECKING:
    from tests.distributed.threaded_ranks import ThreadedRanks

collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]  # ranks meet by torch.distributed

ModelFor = Callable[[str, int], Path]

#: attention heads and KV heads of a tiny model, by the number of ranks; None: the model's own
HEADS: dict[int, tuple[int, int] | None] = {2: None, 3: (12, 3), 4: (12, 2)}


def engine(folder: object, num_ranks: int, num_stages: int = 1, **options: Any) -> LLM:
    """An engine on the CPU, with so many stages of so many ranks. Its ranks are threads if there are more than one."""
    given = {"dtype": "float32", "backend": "cpu", "num_threads": 1, "distributed_executor_backend": "uni"}
    given |= {"skip_tokenizer_init": True, "max_model_len": 96, "max_num_seqs": 16, "check_invariants": True} | options
    with pytest.MonkeyPatch.context() as patch:
        if num_ranks * num_stages > 1:
            patch.setattr(assemble, "build_executor", threaded_ranks)
        return LLM(str(folder), tensor_parallel_size=num_ranks, pipeline_parallel_size=num_stages, **given)


def threaded_ranks(config: EngineConfig, **how: bool) -> ThreadedRanks:
    """For `octavo.engine.assemble.build_executor`."""
    from tests.distributed.threaded_ranks import ThreadedRanks

    return ThreadedRanks(WorkerTask.of(config, **how))


@pytest.fixture(scope="session")
def model_for(tmp_path_factory: pytest.TempPathFactory, one_torch_thread: None) -> ModelFor:
    """name of TINY, number of ranks -> folder."""
    from tests.tiny_models import TINY, make_tiny_model

    made: dict[tuple[str, int], Path] = {}

    def get(name: str, num_ranks: int) -> Path:
        if (name, num_ranks) not in made:
            changes: dict[str, int] = {}
            if (heads := HEADS[num_ranks]) is not None and "longrope" not in name:
                config, _ = TINY[name]
                names = {"GPT2Config": ("n_head",), "OPTConfig": ("num_attention_heads",)}
                known = names.get(config, ("num_attention_heads", "num_key_value_heads"))
                changes = dict(zip(known, heads, strict=False))
            folder = tmp_path_factory.mktemp("ranks") / f"{name}-{num_ranks}"
            made[name, num_ranks] = make_tiny_model(name, folder, **changes)
        return made[name, num_ranks]

    return get
