"""A server's engine on a new machine: `python -m tests.gpu.first_start FOLDER`, with separate cache folders.

Prints JSON: the kernels found compiled when they first ran (found), those compiled only then (compiled), those compiled
during the requests that followed (late), and the requests' tokens.
"""

from __future__ import annotations

import json
import sys

import triton

from octavo import RequestOutput
from octavo.engine.assemble import build_engine
from octavo.engine.options import engine_config
from tests.test_greedy import GREEDY, MAX_MODEL_LEN, prompts_of


def main() -> None:
    looked_up: list[tuple[str, bool]] = []

    def told(*, src: object, cache_hit: bool, **about: object) -> None:
        looked_up.append((src.name, cache_hit))  # type: ignore[attr-defined]

    triton.knobs.compilation.listener = told
    options = {"model": sys.argv[1], "backend": "triton", "dtype": "float32", "max_num_seqs": 32}
    options |= {"skip_tokenizer_init": True, "max_model_len": MAX_MODEL_LEN, "num_gpu_blocks_override": 400}
    engine = build_engine(engine_config(**options), serves=True)
    at_start = len(looked_up)
    asks = [GREEDY, GREEDY.replace(logprobs=2, presence_penalty=0.1), GREEDY.replace(temperature=0.8, top_k=5, seed=1)]
    for index, prompt in enumerate(prompts_of(7)):
        engine.add_request(engine.make_request(str(index), prompt, GREEDY))
    last: dict[str, RequestOutput] = {}
    while engine.has_unfinished_requests:
        last |= {output.request_id: output for output in engine.step()}
    for index, ask in enumerate(asks):
        engine.add_request(engine.make_request(f"other {index}", [3, 4, 5], ask))
        while engine.has_unfinished_requests:
            engine.step()
    engine.close()
    found = {
        "found": [name for name, is_hit in looked_up[:at_start] if is_hit],
        "compiled": [name for name, is_hit in looked_up[:at_start] if not is_hit],
        "late": [name for name, _ in looked_up[at_start:]],
        "tokens": [last[str(index)].outputs[0].token_ids for index in range(len(last))],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
