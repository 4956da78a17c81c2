"""How byte-level tokenizers cut text into words before they merge anything, by GGUF's names for it.

GGUF does not store the rule, only a name (`tokenizer.ggml.pre`) for what the model's own tokenizer does.
"""

from __future__ import annotations

from tokenizers import Regex, pre_tokenizers

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_PUNCTUATION_AND_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_THREE_DIGITS = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_PUNCTUATION_AND_SPACE}"
_ONE_DIGIT = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_PUNCTUATION_AND_SPACE}"

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BY_CASE = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

#: GPT-2's own expression, the same after single digits, or another one.
_GPT2_CUTS = ("default", "gpt-2", "phi-2", "olmo", "jais", "mpt")
_DIGIT_CUTS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")
_REGEX_CUTS = {
    "llama-bpe": _THREE_DIGITS,
    "llama3": _THREE_DIGITS,
    "llama-v3": _THREE_DIGITS,
    "dbrx": _THREE_DIGITS,
    "smaug-bpe": _THREE_DIGITS,
    "qwen2": _ONE_DIGIT,
    "tekken": _BY_CASE,
    "deepseek-r1-qwen": _ONE_DIGIT,
}
#: Tokenizers that take a word that is in the vocabulary as it is, whatever the merges say.
WHOLE_WORDS_FIRST = ("llama-bpe", "llama3", "llama-v3", "tekken")


def known_cuts() -> list[str]:
    return sorted((*_GPT2_CUTS, *_DIGIT_CUTS, *_REGEX_CUTS))


def cutter(name: str) -> pre_tokenizers.PreTokenizer | None:
    """The rule of that name, ending in bytes; None if there is none."""
    by_gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if name in _GPT2_CUTS:
        return by_gpt2
    if name in _DIGIT_CUTS:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), by_gpt2])
    if name in _REGEX_CUTS:
        split = pre_tokenizers.Split(Regex(_REGEX_CUTS[name]), behavior="isolated")
        return pre_tokenizers.Sequence([split, to_bytes])
    return None
