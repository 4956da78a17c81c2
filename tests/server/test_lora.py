"""Adapters over HTTP, with the engine behind a socket: their names as models, loaded and unloaded while it runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("safetensors")

from safetensors.numpy import save_file

from octavo import LLM, LoRARequest, SamplingParams
from octavo.errors import InvalidRequestError
from octavo.processes.process_client import ProcessClient
from octavo.server.app import create_app
from octavo.server.settings import ServerSettings
from tests.processes.engines import SIZES, smollm2_engine
from tests.server.scripted_engine import ScriptedEngine

np: Any = pytest.importorskip("numpy")

PROMPT, NUM_LAYERS, HIDDEN = "The capital of France is", 30, 576
Work = Callable[[httpx.AsyncClient], Coroutine[Any, Any, Any]]


def write(folder: Path, seed: int) -> Path:
    """An adapter of smollm2."""
    random, tensors = np.random.default_rng(seed), {}
    for layer in range(NUM_LAYERS):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_"
        tensors |= {f"{name}A.weight": random.normal(0, 0.3, (2, HIDDEN)).astype(np.float32)}
        tensors |= {f"{name}B.weight": random.normal(0, 0.3, (HIDDEN, 2)).astype(np.float32)}
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("first", "inside/second", "third")):
        write(root / name, seed)
    (root / "link").symlink_to(root / "third")
    return root


@pytest.fixture(scope="module")
def options(root: Path) -> dict[str, Any]:
    modules = (f"first={root / 'first'}",)
    return {"enable_lora": True, "max_loras": 2, "lora_modules": modules, "lora_root": str(root)}


@pytest.fixture(scope="module")
def offline(options: dict[str, Any]) -> Iterator[LLM]:
    with LLM("smollm2", **SIZES, **options) as llm:
        yield llm


@pytest.fixture(scope="module")
def call(
    options: dict[str, Any], offline: LLM, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Work], Any]]:
    """Runs a coroutine function with a client of a server whose engine is behind a socket."""
    served = smollm2_engine(tmp_path_factory.mktemp("run"), offline, **options)

    async def run(client: ProcessClient, work: Work) -> Any:
        app = create_app(client, ServerSettings(served_model_name=("base",)))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://octavo") as http:
            return await work(http)

    yield lambda work: served.with_client(lambda client: run(client, work))
    served.stop()


def completion(model: str | None = None, **more: Any) -> dict[str, Any]:
    body = {"prompt": PROMPT, "max_tokens": 6, "temperature": 0, **more}
    return body if model is None else body | {"model": model}


def test_an_adapters_name_is_a_model_on_every_route(call: Callable[[Work], Any], offline: LLM) -> None:
    greedy = SamplingParams(temperature=0.0, max_tokens=6)
    wanted = [
        offline.generate([PROMPT], greedy, False, lora_request=adapter)[0].outputs[0].text
        for adapter in (None, LoRARequest("first", 1))
    ]
    assert wanted[0] != wanted[1]

    async def work(http: httpx.AsyncClient) -> None:
        texts = [(await http.post("/v1/completions", json=completion(name))).json() for name in ("base", "first")]
        assert [one["choices"][0]["text"] for one in texts] == wanted
        assert [one["model"] for one in texts] == ["base", "first"]
        messages = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "temperature": 0}
        answers = {}
        for model in ("base", "first"):
            chat = (await http.post("/v1/chat/completions", json=messages | {"model": model})).json()
            claude = (await http.post("/v1/messages", json=messages | {"model": model})).json()
            llama = {"model": model, "stream": False, "options": {"num_predict": 4, "temperature": 0}}
            ollama = (await http.post("/api/chat", json=llama | {"messages": messages["messages"]})).json()
            wish = {"model": model, "input": "Hello", "max_output_tokens": 4, "temperature": 0}
            response = (await http.post("/v1/responses", json=wish)).json()
            assert response["output"][0]["content"][0]["text"] == chat["choices"][0]["message"]["content"]
            said = chat["choices"][0]["message"]["content"], claude["content"][0]["text"], ollama["message"]["content"]
            assert said[0] == said[1] == said[2], model
            answers[model] = said[0]
        assert answers["base"] != answers["first"]
        listed = (await http.get("/v1/models")).json()["data"]
        assert [(one["id"], one["parent"]) for one in listed] == [("base", None), ("first", "base")]
        assert (await http.get("/v1/models/first")).json()["root"].endswith("/first")
        session = (await http.post("/v1/sessions", json={"prompt": PROMPT, "model": "first"})).json()
        asked = {"max_tokens": 6, "temperature": 0}
        told = (await http.post(f"/v1/sessions/{session['id']}/generate", json=asked)).json()
        assert told["choices"][0]["text"] == wanted[1]
        missing = await http.post("/v1/completions", json=completion("fourth"))
        assert missing.status_code == 404
        assert "or an adapter of /v1/models" in missing.json()["error"]["message"]

    call(work)


def test_adapters_come_and_go_while_the_server_runs(call: Callable[[Work], Any], root: Path) -> None:
    async def work(http: httpx.AsyncClient) -> None:
        async def post(path: str, **body: Any) -> httpx.Response:
            return await http.post(f"/v1/{path}_lora_adapter", json=body)

        loaded = await post("load", lora_name="second", lora_path="inside/second")
        assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'second' is loaded.")
        assert (await post("load", lora_name="second", lora_path=str(root / "inside/second"))).status_code == 400
        again = await post("load", lora_name="second", lora_path=str(root / "third"), load_inplace=True)
        assert again.status_code == 200
        long = asyncio.create_task(
            http.post("/v1/completions", json=completion("second", max_tokens=60, ignore_eos=True))
        )
        while not (await http.get("/load")).json()["server_load"]:
            await asyncio.sleep(0.001)
        assert (await post("unload", lora_name="second")).status_code == 200
        assert (await long).json()["usage"]["completion_tokens"] == 60  # it had begun
        assert (await http.post("/v1/completions", json=completion("second"))).status_code == 404
        assert (await post("unload", lora_name="second")).status_code == 404
        assert (await post("unload", lora_name="first", lora_int_id=99)).status_code == 404
        names = [one["id"] for one in (await http.get("/v1/models")).json()["data"]]
        assert names == ["base", "first"]

    call(work)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"lora_name": "x", "lora_path": "../first"}, "without '..'"),
        ({"lora_name": "x", "lora_path": "/etc"}, "allowed are folders inside lora_root"),
        ({"lora_name": "x", "lora_path": "inside/../../x"}, "without '..'"),
        ({"lora_name": "x", "lora_path": "link"}, "link is a link"),
        ({"lora_name": "x", "lora_path": "."}, "allowed are folders inside"),
        ({"lora_name": "x", "lora_path": "a\0b"}, "allowed are folders inside"),
        ({"lora_name": "x", "lora_path": "nothing"}, "No such file"),
        ({"lora_name": "x", "lora_path": "inside"}, "adapter_config.json: No such file"),
        ({"lora_name": "base", "lora_path": "first"}, "names the model itself"),
        ({"lora_name": "", "lora_path": "first"}, "lora_name is ''"),
        ({"lora_name": "x", "lora_path": 3}, "lora_path"),
        ({"lora_name": "x"}, "lora_path"),
    ],
)
def test_nothing_is_loaded_from_elsewhere(call: Callable[[Work], Any], body: dict[str, Any], message: str) -> None:
    async def work(http: httpx.AsyncClient) -> None:
        refused = await http.post("/v1/load_lora_adapter", json=body)
        assert refused.status_code in (400, 422)
        assert message in refused.json()["error"]["message"]

    call(work)


def test_a_link_to_a_file_is_refused_and_a_broken_folder_says_why(call: Callable[[Work], Any], root: Path) -> None:
    linked, broken = write(root / "linked", 5), write(root / "broken", 6)
    (linked / "adapter_model.safetensors").unlink()
    (linked / "adapter_model.safetensors").symlink_to(root / "first" / "adapter_model.safetensors")
    (broken / "adapter_config.json").write_text('{"r": 3, "lora_alpha": 4}')

    async def work(http: httpx.AsyncClient) -> None:
        for name, why in (("linked", "adapter_model.safetensors is a link"), ("broken", "has shape [2, 576]")):
            refused = await http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": name})
            assert (refused.status_code, why in refused.json()["error"]["message"]) == (400, True), refused.text

    call(work)


def test_without_a_root_nobody_loads() -> None:
    async def work() -> None:
        engine = ScriptedEngine()
        app = create_app(engine, ServerSettings(served_model_name=("base",)))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://octavo") as http:
            refused = await http.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "first"})
            assert (refused.status_code, "--lora-root" in refused.json()["error"]["message"]) == (403, True)
        with pytest.raises(InvalidRequestError, match="enable_lora is False"):
            await engine.add_lora(LoRARequest("x", 1, "first"))

    asyncio.run(work())
