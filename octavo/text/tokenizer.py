"""Tokenizer: text to token ids and back, and conversations to prompts, by the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from octavo.config import ContentFormat, ModelConfig
from octavo.errors import InvalidRequestError, TokenizerError
from octavo.models.gguf_parts import read_gguf_model
from octavo.models.located import TokenizerSource, locate_tokenizer
from octavo.shown import cut, shown
from octavo.text.answers.style import answer_style
from octavo.text.answers.thinking import PROMPT_END, ThoughtMarks, ThoughtState
from octavo.text.detokenizer import Detokenizer, TextStream, TokenTexts, TokenWidths
from octavo.text.folder_tokenizer import tokenizer_from_folder
from octavo.text.gguf_tokenizer import tokenizer_from_gguf
from octavo.text.template_process import template_processes
from octavo.text.text_bounds import TextBounds, text_bounds
from octavo.text.tokenizer_calls import TransformersCalls
from octavo.text.tokenizer_parts import TokenizerParts, is_panic
from octavo.text.tools_in_text import reads_tools, with_tools

Messages = Sequence[Mapping[str, Any]]

#: characters; longer texts are encoded and decoded in the library's batch calls, which let other threads run
LONG_TEXT = 2048


class Tokenizer(TransformersCalls):
    """One model's tokenizer. bos_token_id, eos_token_id: None where it has none."""

    def __init__(
        self,
        parts: TokenizerParts,
        chat_template: str | None = None,
        content_format: ContentFormat = "auto",
        reasoning_parser: str | None = None,
    ) -> None:
        self.reasoning_parser = reasoning_parser
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
        """Token ids; with add_special_tokens also the begin and end tokens that the model expects."""
        if not isinstance(text, str):
            raise InvalidRequestError(f"prompt is {text!r}, allowed is a string")
        with _whole_characters(text), _no_panic():
            if len(text) <= LONG_TEXT:
                return list(self._encoder.encode(text, add_special_tokens=add_special_tokens).ids)
            (encoding,) = self._encoder.encode_batch_fast([text], add_special_tokens=add_special_tokens)
            return encoding.ids  # already a new list, so a long one is not copied again

    def encode_pair(self, first: str, second: str, add_special_tokens: bool = True) -> tuple[list[int], list[int], int]:
        """Two texts as one: token ids, their types, and where the second text begins."""
        for text in (first, second):
            if not isinstance(text, str):
                raise InvalidRequestError(f"one of two texts is {shown(text)}, allowed is a string")
        with _whole_characters(first + second), _no_panic():
            (pair,) = self._encoder.encode_batch([(first, second)], add_special_tokens=add_special_tokens)
        owners = pair.sequence_ids
        return pair.ids, pair.type_ids, owners.index(1) if 1 in owners else len(owners)

    def decode(self, token_ids: int | Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of one or several tokens. Bytes that form no character become U+FFFD; ids past the vocabulary are
        dropped."""
        try:
            return self._detokenizer.text([token_ids] if isinstance(token_ids, int) else token_ids, skip_special_tokens)
        except (OverflowError, TypeError) as error:
            raise InvalidRequestError(f"token ids must be whole numbers from 0 up: {error}") from None

    def fewest_tokens(self, text: str) -> int:
        """A lower bound of the text's token count, much faster than encoding; 0 if none is known."""
        return 0 if self._bounds is None else self._bounds.fewest_tokens(text)

    def settled_text(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """`decode` without an incomplete last character, which the stream of the next tokens returns."""
        return self._detokenizer.settled_text(token_ids, skip_special_tokens)

    def stream(self, skip_special_tokens: bool = True, prompt_token_ids: Sequence[int] = ()) -> TextStream:
        """Decode token by token after the prompt: its `settled_text` and the pieces join to `decode` of all tokens."""
        return self._detokenizer.stream(skip_special_tokens, prompt_token_ids)

    def token_to_str(self, token_id: int) -> str:
        """The text of one token, special or not, in the middle of a text: a space before a word is kept."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """`token_to_str` as bytes. A token may be part of a character; a text's tokens join to its bytes."""
        return self._detokenizer.token_bytes(token_id)

    @property
    def chat_template(self) -> str | None:
        """The default template."""
        return self._chat_templates.get("default")

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
        """Render a conversation as a prompt. chat_template: the name of one of the model's templates, Jinja text, or a
        file; chat_template_content_format: overrides the engine's option; variables go to the template."""
        for name in ("tokenize", "return_dict", "return_tensors"):
            if variables.pop(name, None):
                raise InvalidRequestError(f"{name} is set, but this returns text; use encode_chat for token ids")
        template = self._choose_template(chat_template, has_tools=tools is not None)
        if tools and not reads_tools(template):
            messages, tools = with_tools(messages, tools), None
        return template_processes().render(
            template=template,
            messages=messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            content_format=chat_template_content_format or self._content_format,
            variables={**self._special_tokens, "tools": tools, "documents": None, **variables},
        )

    def encode_chat(self, messages: Messages, **options: Any) -> list[int]:
        """Token ids of a conversation. The template writes the begin token itself, so none is added."""
        return self.encode(self.apply_chat_template(messages, **options), add_special_tokens=False)

    def thought_state(self, prompt_token_ids: Sequence[int]) -> ThoughtState:
        """Whether a prompt has begun the model's thoughts."""
        if self.thought_marks is None:
            return "ended"
        return self.thought_marks.state(self.decode(prompt_token_ids[-PROMPT_END:], skip_special_tokens=False))

    def bad_word_ids(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """The token sequences that spell these words, at the start of a text and after a space. The second counts only
        if its first token includes the space; otherwise it is the first one after a separate space."""
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
    def thought_marks(self) -> ThoughtMarks | None:
        """What stands around the model's thoughts. Raises ConfigError if the option names none."""
        return answer_style("\n".join(self.chat_templates.values()), "none", self.reasoning_parser).thought_marks

    @cached_property
    def token_texts(self) -> TokenTexts:
        """token_to_str of every token, cached."""
        return TokenTexts(self.token_to_str)

    @cached_property
    def token_widths(self) -> TokenWidths:
        """How many characters begin in each token, cached."""
        return TokenWidths(self.token_bytes)

    @cached_property
    def _bounds(self) -> TextBounds | None:
        return text_bounds(self._encoder)

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
        if self.chat_template is not None:
            return self.chat_template
        found = ", ".join(self._chat_templates) or "none"
        raise TokenizerError(
            f"the model has no default chat template (templates found: {found}); pass chat_template= a template's "
            "name, Jinja text, or a file with one; or use generate with a plain prompt"
        )


@contextmanager
def _whole_characters(text: str) -> Iterator[None]:
    """Say which character the library refuses: it takes any string that can be written as UTF-8."""
    try:
        yield
    except TypeError:
        at = next(index for index, character in enumerate(text) if "\ud800" <= character <= "\udfff")
        raise InvalidRequestError(
            f"the text holds half of a surrogate pair at character {at}, which is not a character; "
            "send whole characters"
        ) from None


@contextmanager
def _no_panic() -> Iterator[None]:
    """Turn the library's panic into an error of this request."""
    try:
        yield
    except BaseException as error:
        if not is_panic(error) and type(error) is not Exception:  # it has no class of its own
            raise
        raise TokenizerError(f"the tokenizer's library failed on this text: {cut(str(error))}") from error


def open_tokenizer(config: ModelConfig, own: Callable[[], TokenizerSource | None]) -> Tokenizer | None:
    """The model's own tokenizer, or the one that the configuration names instead; None with skip_tokenizer_init."""
    if config.skip_tokenizer_init:
        return None
    source = own() if config.tokenizer is None else locate_tokenizer(config.tokenizer)
    if source is None:
        raise TokenizerError(
            f"{config.model} has no tokenizer; pass tokenizer= a folder with a tokenizer.json, "
            "or set skip_tokenizer_init and send token ids"
        )
    override = None if config.chat_template is None else _template_text(config.chat_template)
    return Tokenizer(_read(source), override, config.chat_template_content_format, config.reasoning_parser)


def check_chat_template(template: str) -> None:
    """Check the option `chat_template` before anything is loaded. Raises TokenizerError."""
    text = _template_text(template)
    template_processes().check(text)
    if "messages" not in text:
        raise TokenizerError(
            f"chat_template is {shown(template)}, which never reads messages, as a chat template must; pass Jinja "
            "text, or a file with it"
        )


def named_tokenizer(name: str) -> Tokenizer:
    """A tokenizer without its model: a folder, a GGUF file, a packaged model or a hub id."""
    return Tokenizer(_read(locate_tokenizer(name)))


def _read(source: TokenizerSource) -> TokenizerParts:
    if isinstance(source, Path):
        return tokenizer_from_gguf(read_gguf_model(source)) if source.is_file() else tokenizer_from_folder(source)
    return tokenizer_from_gguf(source)


def _template_text(template: str) -> str:
    """Read a template given as text or as a path: text has braces or line ends, and paths have neither."""
    if "{" in template or "\n" in template:
        return template
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # no such file, not UTF-8, or not a file's name
        raise TokenizerError(
            f"chat_template is {shown(template)}, which is neither a template nor a file: {error}; give Jinja text, "
            "the name of one of the model's templates, or a file in UTF-8"
        ) from None
