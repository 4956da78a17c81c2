"""The loop that drives simulated engines drives a real one: the same requests, with the same tokens computed."""

from __future__ import annotations

from benchmarks.real_engine import RealEngine
from octavo.engine.assemble import build_engine
from octavo.engine.options import engine_config
from octavo.observe.event_log import EventLog
from octavo.simulator.drive import Driver
from octavo.simulator.engine import SimulatedEngine, SimulatedSizes
from octavo.simulator.fleet import Fleet
from octavo.simulator.generate import TraceRecipe
from octavo.simulator.measured_cost import MeasuredCost
from octavo.simulator.requests import RequestMaker, drawn_below, never_repeated
from tests.conftest import TinyFolder
from tests.simulator.tables import made_table

LOAD = TraceRecipe(
    num_prompts=6, dataset="random", random_input_len=20, random_output_len=6, prefix_len=16, turns=2, think_time=0.0
)


class SteppedClock:
    """A second for each look at it, so that times are the same in every run."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_a_real_engine_computes_what_a_simulated_one_does(tiny_folder: TinyFolder) -> None:
    options = {"num_gpu_blocks_override": 65, "max_num_seqs": 4, "max_num_batched_tokens": 32, "backend": "reference"}
    options["max_model_len"] = 128
    config = engine_config(model=str(tiny_folder("llama")), skip_tokenizer_init=True, **options)
    engine = build_engine(config)
    real = RealEngine(engine.core, SteppedClock(), is_wall=False)
    found = Driver(Fleet([real]), RequestMaker(drawn_below(100, 1))).run(LOAD.requests())
    engine.close()
    sizes = SimulatedSizes(
        num_blocks=65,
        block_size=16,
        max_model_len=128,
        max_num_seqs=4,
        max_num_batched_tokens=32,
        is_overlapped=False,
    )
    simulated = SimulatedEngine(sizes, config.scheduler, MeasuredCost(made_table()), EventLog(0))
    expected = Driver(Fleet([simulated]), RequestMaker(never_repeated())).run(LOAD.requests())
    for one in ("num_prompt_tokens", "num_output_tokens", "num_cached_tokens", "num_refused", "num_cut"):
        assert getattr(found, one) == getattr(expected, one), one
    assert found.num_output_tokens == 36
    assert len(found.ttfts) == len(expected.ttfts) == 6
    assert min(found.ttfts) > 0
