"""Tiny random models that embed, as folders that sentence-transformers would save; transformers is the oracle."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from tests.tiny_models import SIZES, torch, transformers

ENCODER = {
    "vocab_size": 160,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 200,
    "pad_token_id": 0,
}
EMBEDDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", ENCODER),
    "roberta": ("RobertaConfig", ENCODER | {"pad_token_id": 1, "max_position_embeddings": 202, "type_vocab_size": 1}),
    "xlm-roberta": ("XLMRobertaConfig", ENCODER | {"pad_token_id": 1, "max_position_embeddings": 202}),
    "mpnet": ("MPNetConfig", ENCODER | {"pad_token_id": 1, "max_position_embeddings": 202}),
    "modernbert": (
        "ModernBertConfig",
        ENCODER
        | {"num_hidden_layers": 4, "local_attention": 16, "bos_token_id": 1, "eos_token_id": 2}
        | {"cls_token_id": 1, "sep_token_id": 2},
    ),
    "qwen3": ("Qwen3Config", SIZES | {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", SIZES),
    "llama": ("LlamaConfig", SIZES),
}
_KEYS = {"CLS": "pooling_mode_cls_token", "LAST": "pooling_mode_lasttoken", "MEAN": "pooling_mode_mean_tokens"}


def make_tiny_embedder(
    name: str, folder: Path, kind: str | None = None, *, normalizes: bool = True, seed: int = 0, **changes: Any
) -> Path:
    """kind: of pooling, in sentence-transformers' files; None: without these. changes: of the model's sizes."""
    torch.manual_seed(seed)
    config_class, sizes = EMBEDDERS[name]
    auto: Any = transformers.AutoModel
    _save(auto.from_config(getattr(transformers, config_class)(**sizes | changes), dtype=torch.float32), folder)
    if kind is not None:
        write_modules(folder, {_KEYS[kind]: True}, normalizes=normalizes)
    return folder


def make_tiny_classifier(name: str, folder: Path, *, of_tokens: bool = False, seed: int = 0, **changes: Any) -> Path:
    """A model with a head for classes, of texts or of tokens. changes: of its configuration."""
    torch.manual_seed(seed)
    config_class, sizes = EMBEDDERS[name]
    config = getattr(transformers, config_class)(**{"num_labels": 3, "pad_token_id": 0, **sizes, **changes})
    _save(_auto(of_tokens).from_config(config, dtype=torch.float32), folder)
    return folder


def _auto(of_tokens: bool) -> Any:
    names = ("AutoModelForSequenceClassification", "AutoModelForTokenClassification")
    return getattr(transformers, names[of_tokens])


def _save(model: Any, folder: Path) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn_like(parameter)
            else:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)


@cache
def _classifying(folder: Path, of_tokens: bool) -> Any:
    return _auto(of_tokens).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def expected_logits(
    folder: Path, token_ids: list[int], types: list[int] | None = None, *, of_tokens: bool = False
) -> Any:
    """transformers' numbers of one text's classes, or of each token's, alone in its batch."""
    more = {} if types is None else {"token_type_ids": torch.tensor([types])}
    with torch.inference_mode():
        return _classifying(folder, of_tokens)(torch.tensor([token_ids]), **more).logits[0].numpy()


def write_modules(folder: Path, pooling: dict[str, Any], *, normalizes: bool = True) -> None:
    """sentence-transformers' files."""
    steps = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")][: 2 + normalizes]
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in steps]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


@cache
def _oracle(folder: Path) -> Any:
    auto: Any = transformers.AutoModel
    return auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def expected(folder: Path, kind: str, token_ids: list[int], *, normalizes: bool = True) -> Any:
    """transformers' embedding of one text, alone in its batch."""
    with torch.inference_mode():
        hidden = _oracle(folder)(torch.tensor([token_ids])).last_hidden_state[0]
    vector = {"CLS": hidden[0], "LAST": hidden[-1], "MEAN": hidden.mean(0)}[kind]
    return (vector / vector.norm() if normalizes else vector).numpy()


def write_tokenizer(folder: Path) -> None:
    """One word, one token: w3 .. w159, with [CLS] 1 before a text and [SEP] 2 behind it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2} | {f"w{index}": index for index in range(3, 160)}
    made: Any = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["[PAD]", "[CLS]", "[SEP]"])
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    made.save(str(folder / "tokenizer.json"))
