"""The classes of a model, from its config.json: their names, and what makes probabilities of the head's numbers.

sentence-transformers writes down the activation of its cross-encoders, models that score a pair of texts. Without one,
a single class has a sigmoid and several a softmax.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from octavo.errors import UnsupportedModelError
from octavo.models.config_file import ConfigFile
from octavo.models.pooling import Classes, Pooling
from octavo.pooling_params import ClassActivation
from octavo.shown import shown

MOST_CLASSES = 1 << 16
_LONGEST_LABEL = 1 << 12
_OF_PROBLEM: dict[str, ClassActivation] = {
    "regression": "identity",
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
}
_OF_FUNCTION: dict[str, ClassActivation] = {"Identity": "identity", "Sigmoid": "sigmoid", "Softmax": "softmax"}


def classifies(
    read: Callable[[ConfigFile], dict[str, Any]], *, of_tokens: bool = False
) -> Callable[[ConfigFile], dict[str, Any]]:
    """The reader of a family's model with a head for classes."""

    def found(config: ConfigFile) -> dict[str, Any]:
        values = read(config)
        pooling = values.get("extra", {}).get("classifier_pooling") or values.get("pooling", Pooling(kind="LAST"))
        return values | {
            "tie_word_embeddings": True,
            "pooling": pooling,
            "classes": _classes(config, of_tokens=of_tokens),
        }

    return found


def _classes(config: ConfigFile, *, of_tokens: bool) -> Classes:
    labels = _labels(config)
    return Classes(labels=labels, activation=_activation(config, len(labels)), of_tokens=of_tokens)


def _labels(config: ConfigFile) -> tuple[str, ...]:
    """id2label has them all; a file without it has num_labels, by default 2."""
    if not config.has("id2label"):
        return tuple(f"LABEL_{index}" for index in range(config.size("num_labels", 2, largest=MOST_CLASSES)))
    found = config.inside("id2label").values
    labels = [found.get(str(index)) for index in range(len(found))]
    if not 1 <= len(labels) <= MOST_CLASSES or not all(
        isinstance(one, str) and len(one) <= _LONGEST_LABEL for one in labels
    ):
        raise config.wrong("id2label", f"a name for each of 0, 1, 2 and so on, up to {MOST_CLASSES} of them")
    return tuple(map(str, labels))


def _activation(config: ConfigFile, num_labels: int) -> ClassActivation:
    problem = config.optional_text("problem_type")
    if problem is not None:
        if problem not in _OF_PROBLEM:
            raise config.wrong("problem_type", ", ".join(_OF_PROBLEM), UnsupportedModelError)
        found = _OF_PROBLEM[problem]
        return "sigmoid" if found == "softmax" and num_labels == 1 else found
    function = config.inside("sentence_transformers").optional_text("activation_fn")
    if function is None:
        function = config.optional_text("sbert_ce_default_activation_function")
    if function is None:
        return "sigmoid" if num_labels == 1 else "softmax"
    name = function.rpartition(".")[2]
    if name not in _OF_FUNCTION:
        raise UnsupportedModelError(
            f"{config.path}: {config.within}the scores' activation is {shown(function)}; Octavo knows "
            f"{', '.join(_OF_FUNCTION)}"
        )
    return _OF_FUNCTION[name]
