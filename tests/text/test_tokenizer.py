"""The Tokenizer on the packaged models: reference ids, round trips, chat, bad words, and its errors."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.config import ModelConfig
from octavo.errors import InvalidRequestError, ModelLoadError, TokenizerError
from octavo.models.loader import open_checkpoint
from octavo.text.tokenizer import Tokenizer, open_tokenizer
from octavo.text.tokenizer_parts import TokenizerParts
from tests.text import tokenizers

REFERENCE = json.loads((Path(__file__).parent / "reference_prompts.json").read_text())
CASES = [(name, case) for name, cases in REFERENCE.items() for case in cases]
both = pytest.mark.parametrize("name", REFERENCE)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_prompts_become_the_reference_ids(name: str, case: dict[str, Any]) -> None:
    """The ids that transformers gives, recorded once together with the models' answers."""
    tokenizer = tokenizers.packaged(name)
    if case["kind"] == "chat":
        ids = tokenizer.encode_chat([{"role": "user", "content": case["prompt"]}])
    else:
        ids = tokenizer.encode(case["prompt"])
    assert ids == case["prompt_token_ids"]
    assert tokenizer.decode(case["output_token_ids"]) == case["text"]


def test_facts_of_the_packaged_models() -> None:
    smollm2, gemma3 = tokenizers.packaged("smollm2"), tokenizers.packaged("gemma3-270m")
    assert (smollm2.vocab_size, smollm2.bos_token_id, smollm2.eos_token_id) == (49_152, 1, 2)
    assert (gemma3.vocab_size, gemma3.bos_token_id, gemma3.eos_token_id) == (262_144, 2, 1)
    assert smollm2.encode("") == []
    assert gemma3.encode("") == [2]
    assert gemma3.encode("Hi", add_special_tokens=False) == gemma3.encode("Hi")[1:]


@cache
def special_ids(name: str) -> frozenset[int]:
    return frozenset(tokenizers.packaged(name).all_special_ids)


#: names of special tokens, which users may write too, and texts that both tokenizers treat specially
NOTABLE = ["<unk>", "<bos>", "<|im_end|>", "<pad>", " ", "  ", "<0x41>", "\u2581"]


@both
@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(
        st.one_of(
            st.text(st.characters(exclude_categories=("Cc", "Cs"), max_codepoint=0x3FFFF), max_size=20),
            st.sampled_from(NOTABLE),
        ),
        max_size=4,
    )
)
def test_any_text_survives_a_round_trip(name: str, texts: list[str]) -> None:
    """Except for the few bytes that SmolLM2's vocabulary lacks (control characters, and first bytes of planes from 4
    up) and for the mark that SentencePiece writes instead of a space."""
    tokenizer = tokenizers.packaged(name)
    text = "".join(texts)
    ids = tokenizer.encode(text, add_special_tokens=False)
    read = text.replace("\u2581", " ") if name == "gemma3-270m" else text
    assert tokenizer.decode(ids, skip_special_tokens=False) == read
    if not special_ids(name).intersection(ids):
        assert tokenizer.decode(ids) == read


def test_digits_are_cut_one_by_one() -> None:
    tokenizer = tokenizers.packaged("smollm2")
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("in 2024")) == ["in", "Ġ", "2", "0", "2", "4"]


def test_special_tokens_are_found_in_text_and_skipped_on_the_way_back() -> None:
    tokenizer = tokenizers.packaged("smollm2")
    ids = tokenizer.encode("<|im_start|>hello<|im_end|>")
    assert (ids[0], ids[-1]) == (1, 2)
    assert tokenizer.decode(ids) == "hello"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>hello<|im_end|>"
    assert tokenizer.token_to_str(2) == "<|im_end|>"


def test_tokens_and_ids_translate() -> None:
    tokenizer = tokenizers.packaged("gemma3-270m")
    assert tokenizer.convert_tokens_to_ids(["<bos>", "no such token"]) == [2, None]
    assert tokenizer.convert_ids_to_tokens([2, 10**7]) == ["<bos>", None]
    assert tokenizer.decode([10**7]) == ""


def test_bad_words_are_spelt_with_and_without_a_space() -> None:
    tokenizer = tokenizers.packaged("smollm2")
    ids = tokenizer.bad_word_ids(["hello", " hello"])
    assert {tokenizer.decode(spelling) for spelling in ids} == {"hello", " hello"}
    assert len(ids) == 2
    assert tokenizer.bad_word_ids([]) == ()


def test_what_cannot_be_encoded_or_decoded_is_the_requests_fault() -> None:
    tokenizer = tokenizers.packaged("smollm2")
    with pytest.raises(InvalidRequestError, match="half of a surrogate pair at character 1"):
        tokenizer.encode("x\ud800")
    with pytest.raises(InvalidRequestError, match="prompt is None"):
        tokenizer.encode(None)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="whole numbers from 0 up"):
        tokenizer.decode([-1])


def test_a_base_model_has_no_template_and_says_what_to_pass() -> None:
    tokenizer = tokenizers.packaged("gemma3-270m")
    messages = [{"role": "user", "content": "Hi"}]
    with pytest.raises(
        TokenizerError, match=r"no default chat template \(templates found: none\); pass chat_template="
    ):
        tokenizer.encode_chat(messages)
    template = "{{ bos_token }}{{ messages[0].content }}"
    assert tokenizer.encode_chat(messages, chat_template=template) == tokenizer.encode("Hi")


def test_templates_are_chosen_by_name_and_by_need() -> None:
    templates = {"default": "plain", "tool_use": "with tools", "rag": "with documents"}
    tokenizer = Tokenizer(TokenizerParts(tokenizers.byte_level(), chat_templates=templates))
    messages = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(messages) == "plain"
    assert tokenizer.apply_chat_template(messages, tools=[{}]) == "with tools"
    assert tokenizer.apply_chat_template(messages, chat_template="rag") == "with documents"
    assert tokenizer.apply_chat_template(messages, chat_template="{{ 'own' }}") == "own"
    with pytest.raises(TokenizerError, match="'rags', which is neither a template nor a file"):
        tokenizer.apply_chat_template(messages, chat_template="rags")


def open_with(**options: Any) -> Tokenizer | None:
    config = ModelConfig(**options)
    return open_tokenizer(config, lambda: open_checkpoint(config).tokenizer_source)


def test_the_configuration_may_replace_tokenizer_and_template(tmp_path: Path) -> None:
    (tmp_path / "template.jinja").write_text("from a file")
    messages = [{"role": "user", "content": "Hi"}]
    from_file = open_with(chat_template=str(tmp_path / "template.jinja"))
    as_text = open_with(chat_template="{{ 'as text' }}")
    assert from_file is not None
    assert as_text is not None
    assert from_file.apply_chat_template(messages) == "from a file"
    assert as_text.apply_chat_template(messages) == "as text"
    assert open_with(skip_tokenizer_init=True) is None
    with pytest.raises(TokenizerError, match=r"'nowhere.jinja', which is neither a template nor a file"):
        open_with(chat_template="nowhere.jinja")
    as_parts = open_with(chat_template="{{ messages[0].content[0].text }}", chat_template_content_format="string")
    assert as_parts is not None
    assert as_parts.apply_chat_template(messages) == ""
    assert as_parts.apply_chat_template(messages, chat_template_content_format="auto") == "Hi"
    with pytest.raises(ModelLoadError, match=r"tokenizer is './nowhere'"):
        open_with(tokenizer="./nowhere")
    tokenizers.byte_level().save(str(tmp_path / "tokenizer.json"))
    other = open_with(tokenizer=str(tmp_path))
    assert other is not None
    assert other.vocab_size < 300
