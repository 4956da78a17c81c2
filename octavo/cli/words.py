"""Words of a command line before the parser sees them: dashes for underscores, vLLM's flags, flags from a file.

vLLM's flags that Octavo lacks are in `octavo/vllm_options.py`. Those without effect are dropped with a note, the rest
are refused:

    --tensor-parallel-size 1, -tp=1, --trust-remote-code, --no-enable-lora, -O3, --compilation-config.level 3

`octavo serve --config FILE.yaml` reads flags from a file, as vLLM does:

    model: smollm2                       a key is a flag's name, with dashes or underscores, or `model`
    max-model-len: 4k                    the command line wins over the file, the file over the defaults
    served-model-name: [small, smol]     a list is a flag given with several values
    enable-prefix-caching: false         true is the flag, false its --no- form; null leaves it out
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.errors import ConfigError
from octavo.shown import shown
from octavo.vllm_options import ENGINE_OPTIONS, SERVER_FLAGS, SERVER_ONLY, NotHere

#: short names of flags -> the options they stand for
FLAG_ALIASES: dict[str, str] = {
    "tp": "tensor_parallel_size",
    "pp": "pipeline_parallel_size",
    "dp": "data_parallel_size",
    "dpl": "data_parallel_size_local",
    "dpn": "data_parallel_rank",
    "dpr": "data_parallel_start_rank",
    "dpa": "data_parallel_address",
    "dpp": "data_parallel_rpc_port",
    "dpb": "data_parallel_backend",
    "dcp": "decode_context_parallel_size",
    "pcp": "prefill_context_parallel_size",
    "ep": "enable_expert_parallel",
    "q": "quantization",
    "O": "optimization_level",
    "cc": "compilation_config",
    "sc": "speculative_config",
    "n": "nnodes",
    "r": "node_rank",
}

#: flags of vLLM that commands with engine flags know
OF_ENGINES = ENGINE_OPTIONS | SERVER_ONLY | SERVER_FLAGS
_SWITCH_PREFIXES = ("enable_", "disable_", "use_", "allow_", "exclude_", "fully_", "guided_decoding_disable_")
#: other flags without a value; all remaining ones take one
_SWITCHES = frozenset(
    (
        *("trust_remote_code", "headless", "worker_use_ray", "mm_encoder_only"),
        *("ray_workers_use_nsight", "data_parallel_hybrid_lb", "data_parallel_external_lb", "language_model_only"),
        *("kv_sharing_fast_prefill", "skip_mm_profiling", "interleave_mm_strings", "multi_step_stream_outputs"),
        *("return_sampling_mask", "scheduler_reserve_full_isl", "log_error_stack", "tokens_only", "grpc"),
        *("async_engine", "profile", "no_stream", "skip_chat_template", "custom_skip_chat_template", "insecure"),
        *("plot_timeline", "plot_dataset_stats"),
    )
)
_SHORT = re.compile(r"-(?P<name>O|[a-z]{1,3})(?P<key>\.[\w.+-]+)?(?P<value>[=0-9].*)?")


@dataclass(frozen=True, slots=True)
class _Foreign:
    """flag: as written. value: the value in the same word, if any."""

    flag: str
    name: str
    value: str | None
    is_negated: bool

    @property
    def takes_value(self) -> bool:
        return not (self.is_negated or self.name in _SWITCHES or self.name.startswith(_SWITCH_PREFIXES))


def with_dashes(argv: Sequence[str]) -> list[str]:
    """Underscores in flag names become dashes, up to `--`."""
    end = list(argv).index("--") if "--" in argv else len(argv)
    return [*map(_one_with_dashes, argv[:end]), *argv[end:]]


def _one_with_dashes(word: str) -> str:
    """--max_model_len=a_b is --max-model-len=a_b, --compilation_config.a_b is --compilation-config.a_b."""
    if not word.startswith("--"):
        return word
    end = min((place for place in (word.find("="), word.find(".")) if place >= 0), default=len(word))
    return word[:end].replace("_", "-") + word[end:]


def without_foreign_flags(
    argv: Sequence[str], table: Mapping[str, NotHere], is_own: Callable[[str], bool], note: Callable[[str], None]
) -> list[str]:
    """The remaining words. table: vLLM's flags by their names with underscores. Raises ConfigError for one whose value
    would have an effect."""
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            return [*kept, word, *words]
        foreign = _foreign(word, table, is_own)
        if foreign is None:
            kept.append(_whole(word, is_own))
            continue
        value = foreign.value
        if value is None:
            value = next(words, None) if foreign.takes_value else str(not foreign.is_negated)
        if value is None:
            raise ConfigError(f"{foreign.flag} has no value")
        note(_judged(foreign, table[foreign.name], value))
    return kept


def _whole(word: str, is_own: Callable[[str], bool]) -> str:
    """-dp=2 is --data-parallel-size=2, where the command has that flag."""
    match = _SHORT.fullmatch(word)
    if match is None or is_own("--" + match["name"]) or is_own("-" + match["name"]):
        return word
    flag = "--" + FLAG_ALIASES.get(match["name"], "").replace("_", "-")
    key, value = match["key"] or "", (match["value"] or "").removeprefix("=")
    return word if not is_own(flag) else f"{flag}{key}={value}" if value else flag + key


def _judged(foreign: _Foreign, entry: NotHere, value: str) -> str:
    """The note for a flag without effect. Raises ConfigError if its value would have one."""
    text = value if value.isprintable() and len(value) <= 80 else shown(value)
    given = f"{foreign.flag} {text}" if foreign.takes_value else foreign.flag
    if not entry.text_asks_for_nothing(value):
        raise ConfigError(f"{given} is not supported yet: {entry.instead}")
    return f"{given} changes nothing here" + (f": {entry.instead}" if entry.is_idle else "")


def _foreign(word: str, table: Mapping[str, NotHere], is_own: Callable[[str], bool]) -> _Foreign | None:
    """The vLLM flag in a word; None if it is not one, or if Octavo has it."""
    if word.startswith("--"):
        flag, equals, value = word.partition("=")
        name = flag.partition(".")[0].removeprefix("--").rstrip("+").replace("-", "_")
        positive = name.removeprefix("no_")
        is_negated = positive != name and name not in table
        name = positive if is_negated else name
        name = FLAG_ALIASES.get(name, name)
    else:
        match = _SHORT.fullmatch(word)
        if match is None or match["name"] not in FLAG_ALIASES or is_own("--" + match["name"]):
            return None
        flag, equals, value = "-" + match["name"], match["value"] or "", (match["value"] or "").removeprefix("=")
        flag += match["key"] or ""
        name, is_negated = FLAG_ALIASES[match["name"]], False
    if is_own(flag) or name not in table:
        return None
    return _Foreign(flag, name, value if equals else None, is_negated)


# Flags from a file

ActionOf = Callable[[str], argparse.Action | None]
_NOT_KEYS = ("config", "help", "debug")


def words_of_file(path: str, action_of: ActionOf, is_given: Callable[[argparse.Action], bool]) -> list[str]:
    """The file as command-line words, without flags that the command line also gives. Unknown keys become words too:
    the parser reports them. Raises ConfigError."""
    words: list[str] = []
    for key, value in _read(path).items():
        name = str(key).replace("_", "-")
        if name in _NOT_KEYS:
            raise ConfigError(f"{path}: {key} belongs on the command line, not in the file")
        flag = f"--{name}"
        action = action_of(flag)
        if value is None or (action is not None and is_given(action)):
            continue
        words += _words(flag, value, action_of)
    return words


def _words(flag: str, value: object, action_of: ActionOf) -> list[str]:
    if value is True:
        return [flag]
    if value is False:
        no = "--no-" + flag.removeprefix("--")
        is_switch = (action := action_of(flag)) is not None and action.nargs == 0 and action_of(no) is None
        return [] if is_switch else [no]
    if isinstance(value, list):
        return [f"{flag}={_text(one)}" for one in value]
    return [f"{flag}={_text(value)}"]


def _text(value: object) -> str:
    return json.dumps(value) if isinstance(value, (dict, list, bool)) else str(value)


def _read(path: str) -> dict[Any, Any]:
    import yaml

    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
        _check_twins(path, yaml.compose(text, yaml.SafeLoader))
        content: object = yaml.safe_load(text)
    except ConfigError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} cannot be read: {error}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"--config {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path} holds a {type(content).__name__}, allowed are lines such as `port: 8000`")
    return content


def _check_twins(path: str, node: Any) -> None:
    """Refuse repeated keys: YAML would silently take the last."""
    seen: set[str] = set()
    for key, _ in node.value if node is not None and node.id == "mapping" else ():
        name = str(key.value).replace("_", "-")
        if name in seen:
            raise ConfigError(f"--config {path}, line {key.start_mark.line + 1}: {key.value} appears twice")
        seen.add(name)
