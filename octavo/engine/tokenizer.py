"""Tokenizer: text to token ids and back, and conversations to prompts.

The work is done by the `tokenizers` library; this is the one door to it. A Tokenizer is made from a folder
(folder_tokenizer.py) or from a GGUF file (gguf_tokenizer.py), and never changes afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from octavo.config import ContentFormat, ModelConfig
from octavo.engine.detokenizer import Detokenizer, TextStream
from octavo.engine.folder_tokenizer import tokenizer_from_folder
from octavo.engine.gguf_tokenizer import tokenizer_from_gguf
from octavo.engine.tokenizer_parts import TokenizerParts, library_fault
from octavo.errors import InvalidRequestError, TokenizerError
from octavo.models.checkpoint import Checkpoint, TokenizerSource
from octavo.models.loader import locate_tokenizer

Messages = Sequence[Mapping[str, Any]]


class Tokenizer:
    """One model's tokenizer. bos_token_id, eos_token_id: None where it has none."""

    def __init__(
        self, parts: TokenizerParts, chat_template: str | None = None, content_format: ContentFormat = "auto"
    ) -> None:
        self._encoder = parts.encoder
        self._content_format = content_format
        self._special_tokens = dict(parts.special_tokens)
        self._chat_templates = dict(parts.chat_templates)
        if chat_template is not None:
            self._chat_templates = {"default": chat_template}
        self.vocab_size: int = self._encoder.get_vocab_size(with_added_tokens=True)
        self.bos_token_id = self._role_id("bos_token")
        self.eos_token_id = self._role_id("eos_token")

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids; with add_special_tokens also the begin and end tokens that the model wants around a text."""
        if not isinstance(text, str):
            raise InvalidRequestError(f"prompt is {text!r}, allowed is a string")
        try:
            return list(self._encoder.encode(text, add_special_tokens=add_special_tokens).ids)
        except TypeError:  # the library takes any string that can be written as UTF-8
            at = next(index for index, character in enumerate(text) if "\ud800" <= character <= "\udfff")
            raise InvalidRequestError(
                f"the text holds half of a surrogate pair at character {at}, which is no character; "
                "send whole characters"
            ) from None
        except BaseException as error:
            problem = library_fault(error)
            if problem is None:
                raise
            raise InvalidRequestError(f"the model's tokenizer cannot encode this text: {problem}") from error

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text; bytes that make no character show as U+FFFD, ids past the vocabulary as nothing."""
        try:
            return self._detokenizer.text(token_ids, skip_special_tokens)
        except (OverflowError, TypeError) as error:
            raise InvalidRequestError(f"token ids must be whole numbers from 0 up: {error}") from None

    def settled_text(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """`decode` without a last character of which only a part is there: the stream of what comes next brings it."""
        return self._detokenizer.settled_text(token_ids, skip_special_tokens)

    def stream(self, skip_special_tokens: bool = True, prompt_token_ids: Sequence[int] = ()) -> TextStream:
        """Decode token by token, going on where the prompt ends: `settled_text` of the prompt and the pieces joined
        are `decode` of all."""
        return self._detokenizer.stream(skip_special_tokens, prompt_token_ids)

    def token_to_str(self, token_id: int) -> str:
        """What one token, special or not, reads as in the middle of a text: a space before a word is kept."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The same in UTF-8, where a token may be a part of a character; those of a text's tokens make the text."""
        return self._detokenizer.token_bytes(token_id)

    def convert_ids_to_tokens(self, token_ids: Sequence[int]) -> list[str | None]:
        """The tokens as the vocabulary writes them; None for ids past it."""
        return [self._encoder.id_to_token(token_id) for token_id in token_ids]

    def convert_tokens_to_ids(self, tokens: Sequence[str]) -> list[int | None]:
        return [self._encoder.token_to_id(token) for token in tokens]

    @property
    def chat_templates(self) -> Mapping[str, str]:
        return self._chat_templates

    def apply_chat_template(
        self,
        messages: Messages,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        chat_template_content_format: ContentFormat | None = None,
        **variables: Any,
    ) -> str:
        """A conversation as the prompt the model was trained on. chat_template: one of the model's templates by
        name, Jinja text, or a file with it; chat_template_content_format: in place of the engine's option of that
        name; variables go to the template."""
        from octavo.engine.chat_template import render  # jinja2 takes a while to import, and may not be needed

        return render(
            self._choose_template(chat_template, has_tools=tools is not None),
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            content_format=chat_template_content_format or self._content_format,
            variables={**self._special_tokens, "tools": tools, "documents": None, **variables},
        )

    def encode_chat(self, messages: Messages, **options: Any) -> list[int]:
        """Token ids of a conversation. The template writes the begin token itself, so none is added."""
        return self.encode(self.apply_chat_template(messages, **options), add_special_tokens=False)

    def bad_word_ids(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """The token sequences that spell these words: as the start of a text and after a space. The second only
        counts if the space is part of its first token, else it is the first with a space before it."""
        spellings: dict[tuple[int, ...], None] = {}
        for word in words:
            bare = tuple(self.encode(word.lstrip(), add_special_tokens=False))
            spaced = tuple(self.encode(" " + word.lstrip(), add_special_tokens=False))
            if bare:
                spellings[bare] = None
            if bare and spaced[0] != bare[0] and len(spaced) == len(bare):
                spellings[spaced] = None
        return tuple(spellings)

    @cached_property
    def _detokenizer(self) -> Detokenizer:
        return Detokenizer(self._encoder)

    def _role_id(self, role: str) -> int | None:
        token = self._special_tokens.get(role)
        return None if token is None else self._encoder.token_to_id(token)

    def _choose_template(self, asked: str | None, has_tools: bool) -> str:
        if asked is not None:
            return self._chat_templates.get(asked) or _template_text(asked)
        if has_tools and "tool_use" in self._chat_templates:
            return self._chat_templates["tool_use"]
        if "default" in self._chat_templates:
            return self._chat_templates["default"]
        found = ", ".join(self._chat_templates) or "none"
        raise TokenizerError(
            f"the model has no default chat template (templates found: {found}); pass chat_template= a template's "
            "name, Jinja text, or a file with one; or use generate with a plain prompt"
        )


def open_tokenizer(config: ModelConfig, checkpoint: Checkpoint) -> Tokenizer | None:
    """The model's tokenizer, or the one that the configuration names instead; None with skip_tokenizer_init."""
    if config.skip_tokenizer_init:
        return None
    source = checkpoint.tokenizer_source
    if config.tokenizer is not None:
        source = locate_tokenizer(config.tokenizer)
    if source is None:
        raise TokenizerError(
            f"{checkpoint.label} brings no tokenizer; pass tokenizer= a folder with a tokenizer.json, "
            "or set skip_tokenizer_init and send token ids"
        )
    override = None if config.chat_template is None else _template_text(config.chat_template)
    return Tokenizer(_read(source), override, config.chat_template_content_format)


def named_tokenizer(name: str) -> Tokenizer:
    """A tokenizer by itself, without its model: a folder, a GGUF file, a packaged model or a hub id."""
    return Tokenizer(_read(locate_tokenizer(name)))


def _read(source: TokenizerSource) -> TokenizerParts:
    return tokenizer_from_folder(source) if isinstance(source, Path) else tokenizer_from_gguf(source)


def _template_text(template: str) -> str:
    """A template is given as text or as a file's path; text has braces, or line ends, and paths have neither."""
    if "{" in template or "\n" in template:
        return template
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(
            f"chat_template is {template!r}, which is neither a template nor a file: {error}"
        ) from None
