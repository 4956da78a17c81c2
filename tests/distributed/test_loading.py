"""Ranks read their parts of a checkpoint and little else, whatever format it has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from octavo import LLM, SamplingParams
from octavo.config import ModelConfig
from octavo.errors import ConfigError
from octavo.kernels.parameters import Parameter
from octavo.kernels.program.recorder import record_model
from octavo.kernels.tensor import Cut, StoredTensor, at_hand, take_part
from octavo.models.checkpoint import Checkpoint
from octavo.models.loader import open_checkpoint
from octavo.models.registry import build_model
from octavo.models.splits import granule, own_heads
from tests.distributed.conftest import ModelFor, engine
from tests.distributed.test_tensor_parallel import GREEDY
from tests.models.architectures import LLAMA
from tests.models.symbolic import DrawnTensors

Q8_BLOCK_BYTES = 34


def parameters(checkpoint: Checkpoint, rank: int, num_ranks: int, **options: bool) -> Iterator[Parameter]:
    a = checkpoint.architecture
    slots = [(0, layer) for layer in range(a.num_layers)]
    body, heads = record_model(build_model(a, checkpoint, slots, 64, rank, num_ranks, **options))
    seen: dict[str, Parameter] = {}
    for recording in (body, *heads.values()):
        seen.update((each.name, each) for each in recording.parameters())
    yield from seen.values()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_two_ranks_read_a_sharded_checkpoint_once(name: str, model_for: ModelFor, tmp_path: Path) -> None:
    """GPT-2's matrices are transposed as they are read; its table of positions, large in a tiny model, is on each."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(model_for(name, 2))
    model.save_pretrained(tmp_path, max_shard_size="64KB")
    files = list(tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    checkpoint = open_checkpoint(ModelConfig(model=str(tmp_path)))
    read = {rank: sum(_read(each) for each in parameters(checkpoint, rank, 2)) for rank in (0, 1)}
    on_each = sum(_read(each) for each in parameters(checkpoint, 0, 2) if each.name.endswith("wpe.weight"))
    assert sum(read.values()) - on_each <= 1.05 * sum(file.stat().st_size for file in files)
    assert abs(read[0] - read[1]) <= 0.05 * read[0]


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss"])
def test_ranks_read_whole_experts_of_their_own(name: str, model_for: ModelFor) -> None:
    """Five, of a tensor each or of one for all."""
    model = ModelConfig(model=str(model_for(name, 3)))
    whole = {each.name: _read(each) for each in parameters(open_checkpoint(model), 0, 1) if ".experts." in each.name}
    found: dict[str, int] = {}
    for rank, own in enumerate([{0}, {1, 2}, {3, 4}]):
        checkpoint = open_checkpoint(model)
        read = {each.name: _read(each) for each in parameters(checkpoint, rank, 3, divides_experts=True)}
        experts = {name: size for name, size in read.items() if ".experts." in name}
        assert {int(name.split(".experts.")[1].split(".")[0]) for name in experts} == own
        assert not found.keys() & experts.keys(), "each is read once"
        assert rank or not checkpoint.leftovers(), "the first rank, which speaks of them, knows all experts"
        found |= experts
    assert found == whole


def _read(parameter: Parameter) -> int:
    """Bytes of the file's tensors that the parameter needs."""
    return sum(source.read().data.nbytes for source in parameter.sources)


def test_a_part_of_a_mapped_tensor_is_no_copy() -> None:
    whole = DrawnTensors().read("x", (8, 6))
    assert np.shares_memory(take_part(whole, Cut((8, 6), 0, (slice(2, 5),))).data, whole.data)


def test_a_changed_tensors_part_is_the_changed_part() -> None:
    """And no other rows or columns are asked of the file."""
    whole = DrawnTensors("Q8_0").read("x", (8, 96))
    cut = Cut((8, 96), 1, (slice(32, 64),))
    asked: list[Cut] = []

    def read_part(cut: Cut) -> object:
        asked.append(cut)
        return take_part(whole, cut)

    stored = StoredTensor(whole.dtype, whole.shape, at_hand(whole).read, read_part).then(lambda tensor: tensor)  # type: ignore[arg-type]
    blocks = whole.row_data.reshape(8, 3, Q8_BLOCK_BYTES)
    assert np.array_equal(stored.part(cut).read().row_data, blocks[:, 1])
    assert asked == [cut]


def test_a_quantised_gguf_file_is_shared_between_its_blocks() -> None:
    """Nine heads of 64, three KV heads, an MLP of 1536: in blocks of 32."""
    params = GREEDY.replace(max_tokens=10)
    prompts = ["Paper was invented in", "The capital of France is"]

    def answers(llm: LLM) -> list[list[int]]:
        prompts_ids = [{"prompt_token_ids": list(prompt.encode())} for prompt in prompts]
        return [output.outputs[0].token_ids for output in llm.generate(prompts_ids, params, use_tqdm=False)]

    with engine("smollm2", 1, dtype="auto") as one:
        expected = answers(one)
    with engine("smollm2", 3, dtype="auto") as three:
        assert answers(three) == expected


@pytest.mark.parametrize(
    ("inputs", "block_len", "num_ranks", "size"), [(96, 1, 2, 8), (80, 1, 3, 8), (90, 1, 3, 2), (1536, 32, 3, 32)]
)
def test_an_mlp_is_cut_where_kernels_like_it(inputs: int, block_len: int, num_ranks: int, size: int) -> None:
    assert granule(inputs, block_len, num_ranks) == size


def test_blocks_that_heads_or_ranks_do_not_fill_are_told() -> None:
    with pytest.raises(ConfigError, match=r"MLP has 512 inputs, which divide in runs of 256: allowed are up to 2"):
        granule(512, 256, 3)
    specs = build_model(LLAMA, DrawnTensors(), [(0, 0), (0, 1), (0, 2)], 64).layers[0].attention.layer
    with pytest.raises(ConfigError, match=r"3 heads of 16 do not fill the blocks of 32 .* allowed are 1$"):
        own_heads(specs, 2, 32)


def test_a_dummy_models_parts_are_those_of_the_whole(model_for: ModelFor) -> None:
    folder = model_for("llama", 2)
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, detokenize=False)
    found = []
    for num_ranks in (1, 2):
        with engine(folder, num_ranks, load_format="dummy") as llm:
            found.append(llm.generate([[3, 4, 5]], params, use_tqdm=False)[0].outputs[0].token_ids)
    assert found[0] == found[1]
