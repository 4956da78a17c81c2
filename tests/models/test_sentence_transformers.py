"""sentence-transformers' files: what they ask for, what is refused by name, and hostile ones."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from octavo.errors import ModelLoadError, OctavoError, UnsupportedModelError
from octavo.models.pooling import Pooling
from octavo.models.sentence_transformers import read_pooling
from tests.models.mutations import mutated_json

MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
MEAN = {"word_embedding_dimension": 8, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
LIMITS = {"max_seq_length": 256, "do_lower_case": False}


def folder_of(path: Path, modules: Any = MODULES, pooling: Any = MEAN, limits: Any = None) -> Path:
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling").mkdir(exist_ok=True)
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if limits is not None:
        (path / "sentence_bert_config.json").write_text(json.dumps(limits))
    return path


def test_the_steps_are_read(tmp_path: Path) -> None:
    assert read_pooling(folder_of(tmp_path, limits=LIMITS)) == Pooling(kind="MEAN", normalizes=True, max_len=256)
    assert read_pooling(folder_of(tmp_path, MODULES[:2])) == Pooling(kind="MEAN", normalizes=False, max_len=256)


@pytest.mark.parametrize(
    ("pooling", "kind"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "CLS"),
        ({"pooling_mode_lasttoken": True}, "LAST"),
        ({"pooling_mode": "mean"}, "MEAN"),
        ({"pooling_mode": "lasttoken"}, "LAST"),
    ],
)
def test_each_kind_in_old_and_new_files(tmp_path: Path, pooling: dict[str, Any], kind: str) -> None:
    assert read_pooling(folder_of(tmp_path, pooling=pooling)).kind == kind


@pytest.mark.parametrize(
    ("pooling", "named"),
    [
        ({"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls_token, pooling_mode_mean_tokens"),
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ({}, "the pooling is ''"),
    ],
)
def test_other_kinds_are_refused_by_name(tmp_path: Path, pooling: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        read_pooling(folder_of(tmp_path, pooling=pooling))


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([*MODULES, {"type": "sentence_transformers.models.Dense", "path": "3"}], "a step is 'Dense'"),
        (MODULES[:1], "no step is Pooling"),
        ([{"type": "x.Pooling", "path": "../secret"}], "a step's path is '../secret'"),
        ([{"type": "x.Pooling", "path": "/etc"}], "a step's path is '/etc'"),
        ([{"type": "x.Pooling"}], "a step is "),
        ({}, "modules is {}"),
    ],
)
def test_other_steps_are_refused_by_name(tmp_path: Path, modules: Any, message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        read_pooling(folder_of(tmp_path, modules))


def test_hostile_files_are_read_or_refused(tmp_path: Path) -> None:
    rng = random.Random(0)
    names = {"modules.json": MODULES, "1_Pooling/config.json": MEAN, "sentence_bert_config.json": LIMITS}
    num_read = 0
    for _ in range(120):
        folder_of(tmp_path, limits=LIMITS)
        name = rng.choice(list(names))
        (tmp_path / name).write_bytes(mutated_json(rng, names[name]))
        message = ""
        try:
            read_pooling(tmp_path)
            num_read += 1
        except OctavoError as error:
            message = str(error)
        assert not message or (str(tmp_path) in message and len(message) < 2000), message
    assert 10 < num_read < 110
