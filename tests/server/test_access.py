"""Who may call, how much may be sent, and what the server reveals about itself."""

import base64
import json
import warnings
from pathlib import Path

import pytest

from octavo.cli import serve
from octavo.cli.main import parser_of
from octavo.errors import ConfigError
from octavo.processes.supervisor import ServeOptions
from octavo.server.app import create_app
from octavo.server.settings import ServerSettings
from tests.server.scripted_engine import ScriptedEngine, app_of, get, post

TEXT = {"model": "tiny", "prompt": "Hi", "max_tokens": 2}
MESSAGE = {"max_tokens": 2, "messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1/models",
        "/metrics",
        "/events",
        "/memory_map",
        "/load",
        "/version",
        "/openapi.json",
        "/docs",
        "/nowhere",
    ],
)
def test_every_route_wants_a_key(path: str) -> None:
    app = app_of(api_key=("first", "second"))
    refused = get(app, path)
    assert refused.status == 401
    assert refused.error["code"] == "invalid_api_key"
    for wrong in ("Bearer ", "Bearer third", "Basic first", "first", basic("first", "third"), basic("first", "")):
        assert get(app, path, authorization=wrong).status == 401
    for key in ("first", "second"):
        assert get(app, path, authorization=basic("anybody", key)).status != 401
        assert get(app, path, authorization=f"Bearer {key}").status != 401
        assert get(app, path, x_api_key=key).status != 401


def basic(user: str, password: str) -> str:
    """As a browser writes it."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def test_keys_may_come_from_a_file_or_the_environment_and_a_given_one_goes_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    file.write_text("first\n\n  second \n")
    app = app_of(api_key_file=str(file), api_key=("third",))
    assert get(app, "/v1/models").status == 401
    for key in ("first", "second", "third"):
        assert get(app, "/v1/models", x_api_key=key).status == 200
    for name in ("OCTAVO_API_KEY", "VLLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert served_with() == ()
    monkeypatch.setenv("VLLM_API_KEY", "theirs")
    assert served_with() == ("theirs",)
    monkeypatch.setenv("OCTAVO_API_KEY", "ours\n")
    assert served_with() == ("ours",)
    assert served_with("--api-key", "given") == ("given",)
    assert served_with("--api-key-file", str(file)) == ("first", "second")
    monkeypatch.setenv("OCTAVO_API_KEY", " ")
    with pytest.raises(ConfigError, match="OCTAVO_API_KEY is set and empty"):
        served_with()


def served_with(*argv: str) -> tuple[str, ...]:
    """The keys that `octavo serve` hands to its front ends."""
    served: list[ServeOptions] = []

    class Listening:
        def __init__(self, options: ServeOptions) -> None:
            served.append(options)

        def run(self) -> int:
            return 0

    parser = parser_of("serve", serve)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serve, "Supervisor", Listening)
        serve.run(parser.parse(["smollm2", *argv]))
    return served[0].settings.api_key  # type: ignore[no-any-return]


@pytest.mark.parametrize(("content", "match"), [("\n \n", "holds no key"), (None, "cannot be read: .*No such file")])
def test_a_file_without_keys_leaves_no_server_open(tmp_path: Path, content: str | None, match: str) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=f"api_key_file is '{file}', which {match}"):
        app_of(api_key_file=str(file))


def test_a_browser_is_asked_for_a_password_where_it_opens_a_page_and_nowhere_else() -> None:
    app = app_of(api_key=("s:ä",))
    for path in ("/", "/docs"):
        refused = get(app, path)
        assert refused.headers["www-authenticate"] == 'Basic realm="Octavo", charset="UTF-8"'
        assert "in a browser as the password of any user" in refused.error["message"]
        assert get(app, path, authorization=basic("me", "s:ä")).status == 200
    for path in ("/v1/models", "/metrics", "/nowhere"):
        assert get(app, path).headers["www-authenticate"] == "Bearer"
    assert post(app, "/v1/completions", TEXT, authorization=basic("", "s:ä")).status == 200


@pytest.mark.parametrize("credentials", ["", "!", "a2V5", "OmtleQ", "OmtleQ==x", "//79", "key", " "])
def test_what_is_no_password_is_refused(credentials: str) -> None:
    assert get(app_of(api_key=("key",)), "/", authorization=f"Basic {credentials}").status == 401


def test_a_proxys_own_password_does_not_hide_a_key() -> None:
    app = app_of(api_key=("key",))
    assert get(app, "/v1/models", authorization=basic("proxy", "its own"), x_api_key="key").status == 200
    assert get(app, "/v1/models", authorization=basic("proxy", "its own"), x_api_key="no").status == 401


def test_behind_a_proxy_paths_are_known_whether_it_cuts_them_or_not() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        app = app_of(api_key=("key",), root_path="/llm")
    for root in ("/llm", ""):
        refused = get(app, f"{root}/")
        assert (refused.status, refused.headers["www-authenticate"][:5]) == (401, "Basic")
        assert get(app, f"{root}/health").status == 200
        assert get(app, f"{root}/v1/models/tiny", x_api_key="key").json()["id"] == "tiny"
        message = post(app, f"{root}/v1/messages", {}, x_api_key="key").json()
        assert message["type"] == "error", "Anthropic's clients get their own errors under any path"
        assert get(app, f"{root}/openapi.json", x_api_key="key").json()["servers"] == [{"url": "/llm"}]
        assert get(app, f"{root}/v1/models/", x_api_key="key").status == 404, "no redirect, which would lose the root"
    assert get(app, "/llm", x_api_key="key").headers["content-type"].startswith("text/html")
    assert get(app, "/llms/health").status == 401, "the path of another"


@pytest.mark.parametrize("root_path", ["llm", "/llm/", "/"])
def test_a_root_path_that_none_can_be_under_is_refused(root_path: str) -> None:
    with pytest.raises(ConfigError, match="root_path is"):
        app_of(root_path=root_path)


def test_a_tokenizer_is_described_where_the_server_is_asked_to() -> None:
    assert get(app_of(), "/tokenizer_info").status == 404
    told = get(app_of(enable_tokenizer_info_endpoint=True), "/tokenizer_info").json()
    assert (told["eos_token"], told["tokenizer_class"]) == ("<|im_end|>", "PreTrainedTokenizerFast")
    assert told["added_tokens_decoder"]["2"] == {
        **{"content": "<|im_end|>", "special": True},
        **dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False),
    }
    assert "add_generation_prompt" in told["chat_template"]
    assert told["model_max_length"] == 128


def test_posts_want_a_key_too_and_balancers_do_not() -> None:
    app = app_of(api_key=("key",))
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
        assert post(app, path, TEXT).status == 401
    message = post(app, "/v1/messages", TEXT)
    assert (message.status, message.json()["error"]["type"]) == (401, "authentication_error")
    assert post(app, "/v1/completions", TEXT, x_api_key="key").status == 200
    assert [get(app, path).status for path in ("/health", "/ping")] == [200, 200]
    assert get(app, "/health/").status == 401
    assert get(app, "/v1/../health").status == 401


def test_a_large_body_is_refused_by_its_length_and_by_its_bytes() -> None:
    app = app_of(max_body_bytes=1000)
    large = json.dumps({"prompt": "x" * 2000}).encode()
    for headers in ({}, {"content_length": str(len(large))}):
        answer = post(app, "/v1/completions", large, **headers)
        assert answer.status == 413
        assert "allowed are 1000" in answer.error["message"]
    assert post(app, "/v1/messages", large).json()["error"]["type"] == "request_too_large"


def test_a_form_of_a_foreign_page_is_refused() -> None:
    """Pages may send text/plain to any server without asking it first."""
    assert post(app_of(), "/v1/completions", TEXT, **{"content-type": "text/plain"}).status == 415


def test_pages_of_other_origins_are_let_in_only_if_named() -> None:
    origin = {"origin": "https://a.example"}
    assert "access-control-allow-origin" not in get(app_of(), "/v1/models", **origin).headers
    named = app_of(allowed_origins=("https://a.example",), api_key=("key",))
    allowed = get(named, "/v1/models", x_api_key="key", **origin)
    assert allowed.headers["access-control-allow-origin"] == "https://a.example"
    other = get(named, "/v1/models", x_api_key="key", origin="https://b.example")
    assert "access-control-allow-origin" not in other.headers


def test_a_template_of_the_requests_is_text_never_a_file() -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    engine = ScriptedEngine()
    app = app_of(engine, trust_request_chat_template=True)
    for path in ("/etc/passwd", __file__, "../x"):
        answer = post(app, "/v1/chat/completions", chat | {"chat_template": path})
        assert answer.status == 400
        assert "allowed is Jinja text" in answer.error["message"]
    template = "{{ messages[0]['content'] }}!"
    assert post(app, "/v1/chat/completions", chat | {"chat_template": template}).status == 200
    assert engine.tokenizer is not None
    assert engine.tokenizer.decode(engine.requests[0].prompt_token_ids) == "Hi!"
    called = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"city": "Rome"}'}}]}
    told = {"messages": [called], "chat_template": "{{ messages[0].tool_calls[0].function.arguments.city }}"}
    assert post(app, "/v1/chat/completions", chat | told).status == 200
    assert engine.tokenizer.decode(engine.requests[1].prompt_token_ids) == "Rome"
    escape = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    assert post(app, "/v1/chat/completions", chat | {"chat_template": escape}).status == 400
    assert post(app_of(), "/tokenize", {"messages": chat["messages"], "chat_template": template}).status == 400


def test_models_are_found_by_every_name() -> None:
    app = app_of(served_model_name=("org/model", "alias"))
    assert [card["id"] for card in get(app, "/v1/models").json()["data"]] == ["org/model", "alias"]
    assert get(app, "/v1/models/org/model").json()["max_model_len"] == 128
    missing = get(app, "/v1/models/other")
    assert (missing.status, missing.error["code"]) == (404, "model_not_found")
    answer = post(app, "/v1/completions", TEXT)
    assert (answer.status, answer.error["param"], answer.error["code"]) == (404, "model", "model_not_found")
    assert post(app, "/v1/completions", {"prompt": "Hi"}).json()["model"] == "org/model"
    assert post(app, "/v1/completions", TEXT | {"model": "alias"}).json()["model"] == "alias"


def test_what_the_server_tells_of_itself() -> None:
    engine = ScriptedEngine()
    app = app_of(engine)
    assert get(app, "/metrics").body.startswith(b"octavo:up 1\n")
    assert get(app, "/metrics").headers["content-type"].startswith("text/plain")
    assert get(app, "/events").body == b"a log"
    assert get(app, "/events?engine=0").body == b"a log"
    assert get(app, "/memory_map?engine=0").body == b'{"num_blocks":8}'
    assert (
        get(app, "/memory_map?engine=-1").error["message"] == "engine is '-1', allowed is an engine's number from 0 on"
    )
    assert get(app, "/events?engine=one").error["message"] == "engine is 'one', allowed is an engine's number from 0 on"
    assert get(app, "/events").headers["content-disposition"] == "attachment; filename=events.olog"
    assert get(app, "/load").json() == {"server_load": 2}
    assert get(app, "/version").json()["version"]
    page = get(app, "/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    engine.is_alive = False
    assert get(app, "/health").status == 503
    assert get(app, "/ping").status == 503


def test_docs_load_nothing_from_elsewhere_and_can_be_off() -> None:
    docs = get(app_of(), "/docs").body.decode()
    assert "max_completion_tokens" in docs
    assert "http" not in docs
    assert "<script" not in docs
    off = app_of(disable_fastapi_docs=True)
    assert (get(off, "/docs").status, get(off, "/openapi.json").status) == (404, 404)


def test_unknown_routes_and_methods_answer_as_the_others_do() -> None:
    assert get(app_of(), "/v1/no-such-route").error["type"] == "not_found_error"
    assert get(app_of(), "/v1/completions").status == 405
    assert get(app_of(), "/v1/messages").json()["type"] == "error"


def test_tokenize_and_back() -> None:
    app = app_of()
    told = post(app, "/tokenize", {"prompt": "Hello world", "return_token_strs": True}).json()
    assert (told["count"], told["max_model_len"], len(told["token_strs"])) == (2, 128, 2)
    assert post(app, "/detokenize", {"tokens": told["tokens"]}).json() == {"prompt": "Hello world"}
    chat = post(app, "/tokenize", {"messages": [{"role": "user", "content": "Hi"}]}).json()
    assert chat["count"] > 5
    assert post(app, "/tokenize", {}).status == 400
    assert post(app, "/tokenize", {"prompt": "a", "continue_final_message": True}).error["param"] == (
        "continue_final_message"
    )
    for bad in (-1, 49152, 10**30):
        assert post(app, "/detokenize", {"tokens": [bad]}).status == 400


def test_without_a_tokenizer_token_ids_still_work() -> None:
    engine = ScriptedEngine()
    engine.tokenizer = None
    app = app_of(engine)
    assert post(app, "/v1/completions", {"prompt": [5, 6]}).status == 200
    for path, body in (("/v1/completions", TEXT), ("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
        answer = post(app, path, body)
        assert answer.status == 400
        assert "needs a tokenizer" in answer.error["message"]


def test_the_requests_id_is_told_if_asked_for() -> None:
    app = app_of(enable_request_id_headers=True)
    answer = post(app, "/v1/completions", TEXT, x_request_id="abc")
    assert (answer.headers["x-request-id"], answer.json()["id"]) == ("abc", "cmpl-abc")
    assert post(app, "/v1/completions", TEXT, x_request_id="a b").status == 400


def test_every_answer_has_a_request_id_where_it_is_asked_for() -> None:
    """Including refusals and routes behind the key; the id is that of the call."""
    app = app_of(enable_request_id_headers=True, api_key=("key",))
    for path in ("/health", "/v1/models", "/nowhere", "/metrics"):
        assert get(app, path, x_request_id="abc").headers["x-request-id"] == "abc", path
        assert len(get(app, path).headers["x-request-id"]) == 32, path
    assert get(app, "/health", x_request_id="a\tb").headers["x-request-id"] != "a\tb", "what is no id is not told back"
    for path, body in (("/v1/completions", TEXT), ("/v1/messages", MESSAGE)):
        answer = post(app, path, body, x_api_key="key")
        assert answer.json()["id"].endswith(answer.headers["x-request-id"])
        assert len(answer.headers["x-request-id"]) == 32
    named = post(app, "/v1/completions", TEXT | {"request_id": "mine"}, x_api_key="key", x_request_id="other")
    assert (named.headers["x-request-id"], named.json()["id"]) == ("mine", "cmpl-mine")
    assert "x-request-id" not in get(app_of(), "/health").headers


@pytest.mark.parametrize(
    "settings",
    [
        {"served_model_name": ()},
        {"api_key": ("",)},
        {"max_body_bytes": 0},
        {"sse_keep_alive_interval": -1.0},
        {"allow_credentials": True, "allowed_origins": ("*",)},
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        create_app(ScriptedEngine(), ServerSettings(**{"served_model_name": ("m",), **settings}))  # type: ignore[arg-type]
