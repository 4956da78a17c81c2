"""Flags follow from the config."""

import argparse
from dataclasses import fields

import pytest

from octavo.cli.flags import add_engine_flags, config_fields, engine_options, machine_facts, whole_number
from octavo.cli.sampling_flags import FLAGS, NOT_FLAGS, add_sampling_flags, overlay, sampling_options
from octavo.config import CacheConfig, SchedulerConfig
from octavo.errors import InvalidRequestError
from octavo.sampling_params import SamplingParams


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_engine_flags(parser, frozenset({"seed"}))
    add_sampling_flags(parser, max_tokens="16")
    return parser.parse_args(argv)


@pytest.mark.parametrize(
    ("text", "value"),
    [("16", 16), ("-1", -1), ("32k", 32_000), ("32K", 32_768), ("1.5G", 3 * 2**29), ("2g", 2 * 10**9), ("0.5K", 512)],
)
def test_sizes_as_people_write_them(text: str, value: int) -> None:
    assert whole_number(text) == value


@pytest.mark.parametrize("text", ["", "k", "1.5", "4GB", "ten", "1e3"])
def test_a_bad_size_is_refused_with_examples(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="such as 16, 32k"):
        whole_number(text)


def test_every_engine_option_is_a_flag_with_its_help() -> None:
    parser = argparse.ArgumentParser()
    add_engine_flags(parser)
    actions = {action.dest: action for action in parser._actions}
    for name, (field, _) in config_fields().items():
        if name == "model":
            continue  # each command's own
        assert f"--{name.replace('_', '-')}" in actions[name].option_strings
        assert field.metadata["help"] in str(actions[name].help)


def test_only_what_is_given_is_passed_on() -> None:
    assert engine_options(parse()) == {}
    given = parse("--kv-cache-memory-bytes", "4G", "--no-enable-prefix-caching", "--dtype", "float32")
    assert engine_options(given) == {
        "kv_cache_memory_bytes": "4G",
        "enable_prefix_caching": False,
        "dtype": "float32",
    }
    assert CacheConfig(kv_cache_memory_bytes=given.kv_cache_memory_bytes).kv_cache_memory_bytes == 4 * 2**30


def test_excluded_names_are_not_the_engines() -> None:
    given = parse("--seed", "3", "--max-num-seqs", "2")
    assert engine_options(given, frozenset({"seed"})) == {"max_num_seqs": "2"}
    assert SchedulerConfig(max_num_seqs=given.max_num_seqs).max_num_seqs == 2


def test_every_sampling_field_is_a_flag_or_named_as_none() -> None:
    assert {field.name for field in fields(SamplingParams)} == {*FLAGS, *NOT_FLAGS}
    assert not set(FLAGS) & NOT_FLAGS


def test_sampling_flags_make_sampling_params() -> None:
    given = parse(
        *("--temperature", "0.5", "--stop", "a", "--stop", "b", "--stop-token-ids", "7", "--ignore-eos"),
        *("--logit-bias", '{"5": -1.5}', "--n", "4"),
    )
    params = overlay(SamplingParams(), sampling_options(given))
    assert params == SamplingParams(
        temperature=0.5, stop=["a", "b"], stop_token_ids=[7], ignore_eos=True, logit_bias={5: -1.5}, n=4
    )


def test_a_bad_value_names_its_place() -> None:
    with pytest.raises(InvalidRequestError, match=r"^here: temperature is -1"):
        overlay(SamplingParams(), {"temperature": -1.0}, "here: ")
    with pytest.raises(InvalidRequestError, match=r"^here: unknown field 'temprature', allowed are .*temperature"):
        overlay(SamplingParams(), {"temprature": 1.0}, "here: ")


def test_a_number_names_its_machine() -> None:
    facts = machine_facts()
    assert facts["cpu"]
    assert facts["cores"] >= 1
