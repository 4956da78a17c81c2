"""Each engine gets its own GPUs, or its part of the cores."""

import pytest

from octavo.engine.options import engine_config
from octavo.errors import ConfigError
from octavo.processes import placement
from octavo.processes.placement import engine_places


def gpus(monkeypatch: pytest.MonkeyPatch, num: int, visible: str | None = None) -> None:
    monkeypatch.setattr(placement, "find_gpu", lambda index: "a GPU" if index < num else None)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


def test_cores_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 0)
    monkeypatch.setattr(placement, "num_cores", lambda: 7)
    for num_engines, each in ((1, None), (2, 3), (7, 1), (9, 1)):
        places = engine_places(engine_config(data_parallel_size=num_engines))
        assert [place.config.backend.num_threads for place in places] == [each] * num_engines
        assert not any(place.environment for place in places)
    (place, _) = engine_places(engine_config(data_parallel_size=2, num_threads=5))
    assert place.config.backend.num_threads == 5, "it is each engine's"


@pytest.mark.parametrize(
    ("visible", "device", "expected"),
    [
        (None, "auto", ["0", "1"]),
        ("", "auto", ["0", "1"]),
        ("4, 5,6,7", "auto", ["4", "5"]),
        ("4,5,6,7", "cuda:1", ["5", "6"]),
        ("GPU-8f,GPU-11,MIG-x,3", "cuda:2", ["MIG-x", "3"]),
    ],
)
def test_each_engine_sees_its_own_gpu(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, device: str, expected: list[str]
) -> None:
    gpus(monkeypatch, 4, visible)
    places = engine_places(engine_config(data_parallel_size=2, device=device))
    assert [place.environment for place in places] == [{"CUDA_VISIBLE_DEVICES": name} for name in expected]
    assert {place.config.backend.device_index for place in places} == {0}


def test_each_engine_sees_the_gpus_of_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 5, "3,4,5,6,7")
    places = engine_places(engine_config(data_parallel_size=2, tensor_parallel_size=2, device="cuda:1"))
    assert [place.environment for place in places] == [{"CUDA_VISIBLE_DEVICES": names} for names in ("4,5", "6,7")]
    with pytest.raises(ConfigError, match=r"needs 2 GPUs, but there are 5 from .*: allowed here are up to 2 engines"):
        engine_places(engine_config(data_parallel_size=3, tensor_parallel_size=2))


def test_engines_with_stages_of_several_ranks_have_gpus_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 9)
    layout = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
    places = engine_places(engine_config(data_parallel_size=2, **layout))
    assert [place.environment for place in places] == [
        {"CUDA_VISIBLE_DEVICES": names} for names in ("0,1,2,3", "4,5,6,7")
    ]
    with pytest.raises(ConfigError, match=r"needs 4 GPUs, but there are 9 from .*: allowed here are up to 2 engines"):
        engine_places(engine_config(data_parallel_size=3, **layout))
    gpus(monkeypatch, 3)
    with pytest.raises(ConfigError, match=r"up to 0 engines .*, and tensor_parallel_size times pipeline_parallel_size"):
        engine_places(engine_config(data_parallel_size=2, **layout))


def test_ray_has_places_for_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 1)
    config = engine_config(data_parallel_size=2, tensor_parallel_size=2, distributed_executor_backend="ray")
    assert [(place.config, place.environment) for place in engine_places(config)] == [(config, {})] * 2
    with pytest.raises(ConfigError, match="prefill_engines is 1, and distributed_executor_backend is 'ray'"):
        engine_places(config, 1)


def test_too_few_gpus_are_an_error_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 2)
    for size, device, left in ((3, "auto", 2), (2, "cuda:1", 1), (2, "cuda:5", 0)):
        with pytest.raises(ConfigError, match=f"data_parallel_size is {size}, .* but there are {left} from"):
            engine_places(engine_config(data_parallel_size=size, device=device))


def test_gpus_do_not_matter_to_the_host_s_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 1)
    assert not any(place.environment for place in engine_places(engine_config(data_parallel_size=3, backend="cpu")))


@pytest.mark.parametrize("size", [0, -1, 1025, "many", 1.5, True])
def test_a_size_that_is_none_is_refused(size: object) -> None:
    with pytest.raises(ConfigError, match="data_parallel_size is"):
        engine_config(data_parallel_size=size)
