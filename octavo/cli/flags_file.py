"""`octavo serve --config FILE.yaml`: flags from a file, as vLLM reads them.

model: smollm2                       a key is a flag's name, with dashes or underscores, or `model`
max-model-len: 4k                    the command line wins over the file, the file over the defaults
served-model-name: [small, smol]     a list is a flag given with several values
enable-prefix-caching: false         true is the flag, false its --no- form; null leaves it out
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from octavo.errors import ConfigError

ActionOf = Callable[[str], argparse.Action | None]
_NOT_KEYS = ("config", "help", "debug")


def words_of(path: str, action_of: ActionOf, is_given: Callable[[argparse.Action], bool]) -> list[str]:
    """The file as command-line words, without flags that the command line also gives. Unknown keys become words too:
    the parser reports them. Raises ConfigError."""
    words: list[str] = []
    for key, value in _read(path).items():
        name = str(key).replace("_", "-")
        if name in _NOT_KEYS:
            raise ConfigError(f"{path}: {key} belongs on the command line, not into the file")
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
        raise ConfigError(f"--config {path} is no YAML: {' '.join(str(error).split())}") from None
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
            raise ConfigError(f"--config {path}, line {key.start_mark.line + 1}: {key.value} comes twice")
        seen.add(name)
