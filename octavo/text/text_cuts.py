"""How byte-level tokenizers split text into words before merging, by GGUF's names for the rules.

GGUF stores only the rule's name (`tokenizer.ggml.pre`). Without a name, and in folders of vocab.json and merges.txt,
the kind of model decides.
"""

from __future__ import annotations

from tokenizers import Regex, normalizers, pre_tokenizers

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_PUNCTUATION_AND_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_THREE_DIGITS = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_PUNCTUATION_AND_SPACE}"
_ONE_DIGIT = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_PUNCTUATION_AND_SPACE}"

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_NO_WORD = r"[^\r\n\p{L}\p{N}]?"
_PATHS_AND_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BY_CASE = rf"{_NO_WORD}{_UPPER}*{_LOWER}+|{_NO_WORD}{_UPPER}+{_LOWER}*|\p{{N}}|{_PATHS_AND_SPACE}"
_BY_CASE_WITH_ENDINGS = (
    rf"{_NO_WORD}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_NO_WORD}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}|{_PATHS_AND_SPACE}"
)
_LINE_ENDS_APART = rf"{_CONTRACTIONS}|{_NO_WORD}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"

_NOT_HAN = r"&&[^\p{Han}]]"
_KIMI_UPPER, _KIMI_LOWER = (letters.removesuffix("]") + _NOT_HAN for letters in (_UPPER, _LOWER))
_KIMI = (
    rf"\p{{Han}}+|{_NO_WORD}{_KIMI_UPPER}*{_KIMI_LOWER}+{_CONTRACTIONS}?"
    rf"|{_NO_WORD}{_KIMI_UPPER}+{_KIMI_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_PUNCTUATION_AND_SPACE}"
)

# DeepSeek's tokenizers split in several passes, each within the pieces of the pass before.
_CASED_LETTERS = r"[\p{Lu}\p{Ll}\p{Lt}&&[^\x{1D400}-\x{1D7FF}]]"  # except mathematical ones
_EAST_ASIAN = r"[\x{4E00}-\x{9FA5}\x{0800}-\x{4E00}\x{AC00}-\x{D7FF}]+"
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?{_CASED_LETTERS}+",
    r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+",
    r"\s+$",
    _EAST_ASIAN,
    r"\p{N}+",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EAST_ASIAN, r"\p{N}")
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    r"[\x{4E00}-\x{9FA5}\x{3040}-\x{30FF}]+",
    r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)

#: GPT-2's own expression.
_GPT2_CUTS = (
    *("gpt-2", "phi-2", "olmo", "jais", "mpt", "exaone4", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de"),
    *("gigachat", "a.x-4.0", "mellum", "modern-bert", "trillion", "granite-docling"),
)
#: The same, after single digits.
_DIGIT_CUTS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
_LLAMA3_CUTS = (
    *("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
)
_ONE_DIGIT_CUTS = (
    *("qwen2", "deepseek-r1-qwen", "megrez", "kormo", "f2llmv2", "stablelm2", "hunyuan", "solar-open", "grok-2"),
)
#: Other expressions, each applied within the pieces of the one before.
_REGEX_CUTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys((*_LLAMA3_CUTS, "dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), (_THREE_DIGITS,)),
    **dict.fromkeys(_ONE_DIGIT_CUTS, (_ONE_DIGIT,)),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), (_BY_CASE_WITH_ENDINGS,)),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm"), _DEEPSEEK_V3),
    "tekken": (_BY_CASE,),
    "seed-coder": (_LINE_ENDS_APART,),
    "kimi-k2": (_KIMI,),
    "deepseek-llm": _DEEPSEEK_LLM,
    "deepseek-coder": _DEEPSEEK_CODER,
}
#: Tokenizers that use a whole word from the vocabulary, whatever the merges say. They add a begin token too.
WHOLE_WORDS_FIRST = frozenset((*_LLAMA3_CUTS, "tekken"))

#: By the kind of model, as config.json's model_type and GGUF's general.architecture name it.
_CUTS_BY_KIND = {
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj", "gpt_neox", "gptneox", "opt", "phi", "phi2"), "gpt-2"),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen2moe", "qwen2_vl", "qwen3", "qwen3_moe", "qwen3moe"), "qwen2"),
    **dict.fromkeys(("starcoder", "starcoder2"), "starcoder"),
    **dict.fromkeys(("command-r", "cohere"), "command-r"),
    "stablelm": "stablelm2",
}
_LLAMA3_VOCABULARY = 128_000  # tokens; the rule of smaller vocabularies of the Llama kind is unknown


def known_cuts() -> list[str]:
    return sorted((*_GPT2_CUTS, *_DIGIT_CUTS, *_REGEX_CUTS))


def cut_of_kind(kind: str, vocab_size: int) -> str | None:
    """The rule of a kind of model; None where its tokenizers differ."""
    if kind in ("llama", "mistral") and vocab_size >= _LLAMA3_VOCABULARY:
        return "tekken" if kind == "mistral" else "llama-bpe"
    return _CUTS_BY_KIND.get(kind)


def cutter(name: str) -> pre_tokenizers.PreTokenizer | None:
    """The pre-tokenizer of that name, ending in bytes; None if it is unknown."""
    by_gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if name in _GPT2_CUTS:
        return by_gpt2
    if name in _DIGIT_CUTS:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), by_gpt2])
    if name in _REGEX_CUTS:
        passes = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in _REGEX_CUTS[name]]
        return pre_tokenizers.Sequence([*passes, to_bytes])
    return None


def text_normalizer(name: str) -> normalizers.Normalizer | None:
    """The normaliser that runs before the split."""
    return normalizers.NFC() if name == "qwen2" else None
