"""The files that sentence-transformers saves beside a model: how its hidden states become an embedding.

modules.json                 the steps: Transformer, Pooling, Normalize
1_Pooling/config.json        how token vectors become one
sentence_bert_config.json    the most tokens that it was made for
"""

from __future__ import annotations

from pathlib import Path

from octavo.errors import ModelLoadError, UnsupportedModelError
from octavo.models.config_file import ConfigFile, parse_json_object, read_json, read_optional_json
from octavo.models.pooling import Pooling, PoolingKind
from octavo.models.regular_file import read_regular
from octavo.shown import shown

#: keys of older files, one of them true, and the values of the newer `pooling_mode`
_KINDS: dict[str, tuple[str, PoolingKind]] = {
    "pooling_mode_cls_token": ("cls", "CLS"),
    "pooling_mode_lasttoken": ("lasttoken", "LAST"),
    "pooling_mode_mean_tokens": ("mean", "MEAN"),
}
_OTHER_KINDS = ("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens")


def read_pooling(folder: Path) -> Pooling:
    """Of a folder with a modules.json. Steps and kinds of pooling that are not implemented are refused."""
    path = folder / "modules.json"
    kind: PoolingKind | None = None
    normalizes = False
    for name, place in _modules(path):
        if name == "Pooling":
            kind = _kind(folder / place / "config.json")
        elif name == "Normalize":
            normalizes = True
        elif name != "Transformer":
            raise UnsupportedModelError(
                f"{path}: a step is {shown(name)}; Octavo knows Transformer, Pooling and Normalize"
            )
    if kind is None:
        raise UnsupportedModelError(f"{path}: no step is Pooling; Octavo makes one vector of each text")
    limits = ConfigFile(folder / "sentence_bert_config.json", read_optional_json(folder / "sentence_bert_config.json"))
    return Pooling(kind=kind, normalizes=normalizes, max_len=limits.optional_size("max_seq_length"))


def _modules(path: Path) -> list[tuple[str, str]]:
    """Each step's class, without its module, and its folder."""
    wrapped = parse_json_object(b'{"modules": %s}' % read_regular(path), str(path))
    found = []
    for entry in ConfigFile(path, wrapped).items("modules"):
        kind, place = (entry.get("type"), entry.get("path")) if isinstance(entry, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(place, str):
            raise ModelLoadError(f"{path}: a step is {shown(entry)}; allowed is an object with type and path")
        if Path(place).is_absolute() or ".." in Path(place).parts or "\0" in place:
            raise ModelLoadError(f"{path}: a step's path is {shown(place)}; allowed is a folder beside the file")
        found.append((kind.rpartition(".")[2], place))
    return found


def _kind(path: Path) -> PoolingKind:
    config = ConfigFile(path, read_json(path))
    if config.has("pooling_mode"):
        asked = config.text("pooling_mode")
        kinds = [kind for name, kind in _KINDS.values() if name == asked]
    else:
        asked = ", ".join(key for key in (*_KINDS, *_OTHER_KINDS) if config.flag(key, False))
        kinds = [_KINDS[asked][1]] if asked in _KINDS else []
    if not kinds:
        raise UnsupportedModelError(f"{path}: the pooling is {shown(asked)}; Octavo knows {', '.join(_KINDS)}, alone")
    return kinds[0]
