"""octavo eval MODEL: how well a model predicts a text and answers questions, and what it has lost against another.

octavo eval smollm2-int4 --reference smollm2
octavo eval smollm2-int4 --reference smollm2 --text book.txt --num-tokens 20k
octavo eval smollm2 --questions bfcl              needs the package bfcl-eval
octavo eval models/llama --questions mine.jsonl --json

The text is by default Python's own documentation, pydoc_data.topics, which most Pythons have. The reference is the
dense model, computed by the same backend. Exit code 0 whatever is found.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from octavo.cli.flags import add_flags, add_section_flags, check_counts, machine_facts, section_options
from octavo.cli.parser import CommandParser
from octavo.cli.progress_bar import progress_bar
from octavo.cli.terminal_text import beside_one_another
from octavo.cli.text_file import read_text
from octavo.config import BackendConfig, ModelConfig
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from octavo.bench.evaluation import Result

COMMON = (
    *("--reference", "--text", "--num-tokens", "--context", "--questions", "--num-questions"),
    *("--dtype", "--backend", "--json"),
)
_FLAGS: dict[str, tuple[str, Any, str]] = {
    "reference": ("MODEL", None, "the dense model to compare with"),
    "text": ("FILE", "pydoc", "a text in UTF-8; pydoc: Python's documentation; none: no text"),
    "num-tokens": ("N", 2048, "tokens of the text"),
    "context": ("N", 512, "tokens that are read at once"),
    "questions": ("NAME|FILE", None, "bfcl, or a JSONL file with question, choices and answer"),
    "num-questions": ("N", 100, "questions to ask"),
}
_OWN_FLAGS = ("quantization", "tokenizer", "revision")
_BACKEND_FLAGS = ("backend", "num_threads", "activation_dtype", "device")
_SHORTEST_CONTEXT, _LONGEST_CONTEXT = 8, 1 << 17


def add_arguments(parser: CommandParser) -> None:
    parser.takes_model()
    add_flags(parser, _FLAGS)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    group = parser.add_argument_group("of MODEL alone")
    add_section_flags(group, ModelConfig, lambda name: name in _OWN_FLAGS)
    both = parser.add_argument_group("of both models")
    add_section_flags(both, ModelConfig, lambda name: name == "dtype")
    add_section_flags(both, BackendConfig, lambda name: name in _BACKEND_FLAGS)


def run(args: argparse.Namespace) -> int:
    check_counts(args, "num_tokens", "num_questions", least=2)
    if not _SHORTEST_CONTEXT <= args.context <= _LONGEST_CONTEXT:
        allowed = f"{_SHORTEST_CONTEXT} to {_LONGEST_CONTEXT}"
        raise ConfigError(f"--context is {args.context}, allowed are {allowed} tokens")
    found = _evaluated(args)
    if args.json:
        print(
            json.dumps({"machine": machine_facts(), **_asked(args), "models": [one.facts() for one in found]}, indent=2)
        )
    else:
        print("\n".join(_table(args, found)))
    return 0


def _evaluated(args: argparse.Namespace) -> list[Result]:
    """The reference, if there is one, and the model."""
    from octavo.bench.evaluation import Evaluation
    from octavo.bench.questions import read_questions
    from octavo.bench.scoring_model import ScoringModel

    text = _text(args.text)
    questions = [] if args.questions is None else read_questions(args.questions, args.num_questions)
    if text is None and not questions:
        raise ConfigError("--text is 'none' and there are no --questions: give one of them")
    task = Evaluation(text, args.num_tokens, progress_bar, questions)
    options = section_options(args, ModelConfig)
    own = {name: options[name] for name in _OWN_FLAGS if name in options}
    both = section_options(args, BackendConfig) | {name: options[name] for name in ("dtype",) if name in options}
    if args.reference is None:
        return [task.of_model(args.model, ScoringModel(args.model, args.context, **both | own), None)]
    first, kept = task.of_reference(args.reference, ScoringModel(args.reference, args.context, **both))
    with closing(kept):
        return [first, task.of_model(args.model, ScoringModel(args.model, args.context, **both | own), kept)]


def _text(source: str) -> str | None:
    if source == "none":
        return None
    if source == "pydoc":
        try:
            from pydoc_data.topics import topics
        except ImportError:
            raise ConfigError("this Python lacks pydoc_data.topics: name a file with --text") from None
        return "\n\n".join(topics.values())
    return read_text("--text", source, "pydoc, none and ")


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    text = f"pydoc of Python {platform.python_version()}" if args.text == "pydoc" else args.text
    return {"text": text, "context": args.context, "questions": args.questions}


def _table(args: argparse.Namespace, found: Sequence[Result]) -> list[str]:
    """A column a model, the reference first."""
    asked, last = _asked(args), found[-1]
    head = []
    if last.text is not None:
        head.append(
            f"{last.text.num_tokens:,} tokens of {asked['text']}, {args.context} at once, backend {last.backend}"
        )
    rows = [
        ["", *(result.model for result in found)],
        ["weights", *(f"{one.num_bytes / 1e6:,.1f} MB" for one in found)],
    ]
    rows += [*_text_rows(found), *_question_rows(args, found)]
    return [*head, "", *beside_one_another(rows, names_rows=True)]


def _text_rows(found: Sequence[Result]) -> list[list[str]]:
    scores = [result.text for result in found if result.text is not None]
    if not scores:
        return []
    first, last = scores[0], scores[-1]
    change = f" ({last.perplexity / first.perplexity - 1:+.2%} ± {last.change_error or 0:.2%})"
    perplexities = [f"{score.perplexity:.4f}" for score in scores]
    rows = [["perplexity", *perplexities[:-1], perplexities[-1] + (change if len(scores) > 1 else "")]]
    if last.divergence is not None:
        rows.append(["KL divergence, nats a token", "", f"{last.divergence:.5f} (p99 {last.divergence_p99:.4f})"])
        rows.append(["same best token", "", f"{last.same_best:.2%}"])
    return rows


def _question_rows(args: argparse.Namespace, found: Sequence[Result]) -> list[list[str]]:
    count = found[-1].num_questions
    if not count:
        return []
    rows = [[f"right of {count} ({args.questions})", *(f"{one.num_right / count:.1%}" for one in found)]]
    if (same := found[-1].same_answers) is not None:
        rows.append(["same answer", "", f"{same:.1%}"])
    return rows
