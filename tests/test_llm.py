"""LLM as its user knows it, on a real model: text in, text out, every parameter honoured."""

import copy
import dataclasses
import pickle
import re
from collections.abc import Callable, Iterator
from typing import ClassVar

import numpy as np
import pytest

from octavo import (
    LLM,
    ConfigError,
    EngineArgs,
    EngineDeadError,
    FlatLogprobs,
    InvalidRequestError,
    RequestOutputKind,
    SamplingParams,
)
from octavo.observe.events import BlockCopied, Finished, Forked, StepDone
from octavo.observe.exposition import Counter, Gauge, Histogram
from tests.conftest import TinyFolder

GREEDY = SamplingParams(temperature=0.0, max_tokens=12)
SHORT = SamplingParams(temperature=0.0, max_tokens=2)
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
PROMPTS = ["The capital of France is", "One, two, three,", "Once upon a time"]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    """With activations of 16 bits, which give the answers of float32 in a third of the time."""
    options = {"max_model_len": 256, "max_num_seqs": 16, "check_invariants": True, "disable_log_stats": False}
    with LLM("smollm2", backend="cpu", activation_dtype="int16", **options) as engine:
        yield engine


def texts(outputs) -> list[str]:
    return [output.outputs[0].text for output in outputs]


def test_outputs_come_in_the_order_of_prompts_and_as_if_each_were_alone(llm: LLM) -> None:
    together = llm.generate(PROMPTS, GREEDY)
    alone = [llm.generate(prompt, GREEDY)[0] for prompt in PROMPTS]
    assert [output.prompt for output in together] == PROMPTS
    assert texts(together) == texts(alone)
    assert all(len(output.outputs[0].token_ids) == 12 for output in together)
    assert all(output.outputs[0].finish_reason == "length" for output in together)


def test_text_ids_and_dicts_are_the_same_prompt(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode(PROMPTS[0])
    spellings = [PROMPTS[0], ids, {"prompt": PROMPTS[0]}, {"prompt_token_ids": ids}]
    outputs = llm.generate(spellings, GREEDY)
    assert len(set(texts(outputs))) == 1
    assert all(output.prompt_token_ids == ids for output in outputs)
    assert texts(llm.generate(ids, GREEDY)) == texts(outputs[:1])


def test_chat_stops_at_the_models_end_token(llm: LLM) -> None:
    (output,) = llm.chat(QUESTION, SamplingParams(temperature=0.0, max_tokens=32))
    completion = output.outputs[0]
    assert completion.text == "The capital of France is Paris."
    assert (completion.finish_reason, completion.stop_reason) == ("stop", None)
    assert completion.token_ids[-1] in (llm.get_tokenizer().eos_token_id, 2)


def test_ignore_eos_goes_on(llm: LLM) -> None:
    (output,) = llm.chat(QUESTION, SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True))
    assert len(output.outputs[0].token_ids) == 32
    assert output.outputs[0].finish_reason == "length"


def test_each_prompt_may_have_its_own_parameters(llm: LLM) -> None:
    params = [SamplingParams(temperature=0.0, max_tokens=length) for length in (1, 5, 9)]
    assert [len(o.outputs[0].token_ids) for o in llm.generate(PROMPTS, params)] == [1, 5, 9]
    with pytest.raises(InvalidRequestError, match="sampling_params holds 2 values for 3 prompts"):
        llm.generate(PROMPTS, params[:2])


def test_stop_strings_cut_the_text_wherever_tokens_end(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=32)
    (whole,) = llm.chat(QUESTION, params)
    text = whole.outputs[0].text
    for stop in ("France", "ran", "l of F", "Paris.", "is P"):
        (cut,) = llm.chat(QUESTION, params.replace(stop=stop))
        assert cut.outputs[0].text == text[: text.index(stop)]
        assert (cut.outputs[0].finish_reason, cut.outputs[0].stop_reason) == ("stop", stop)
        (kept,) = llm.chat(QUESTION, params.replace(stop=["never", stop], include_stop_str_in_output=True))
        assert kept.outputs[0].text == text[: text.index(stop) + len(stop)]


def test_stop_tokens_end_a_sequence_and_are_not_shown(llm: LLM) -> None:
    (whole,) = llm.generate(PROMPTS[0], GREEDY)
    stop_id = whole.outputs[0].token_ids[4]
    first = whole.outputs[0].token_ids.index(stop_id)
    (cut,) = llm.generate(PROMPTS[0], GREEDY.replace(stop_token_ids=[stop_id]))
    completion = cut.outputs[0]
    assert completion.token_ids == whole.outputs[0].token_ids[: first + 1]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", stop_id)
    assert completion.text == llm.get_tokenizer().decode(completion.token_ids[:-1])


def test_min_tokens_holds_the_end_back(llm: LLM) -> None:
    (output,) = llm.chat(QUESTION, SamplingParams(temperature=0.0, max_tokens=32, min_tokens=20))
    assert len(output.outputs[0].token_ids) >= 20


def test_stream_deltas_add_up_to_the_whole(llm: LLM) -> None:
    whole = texts(llm.generate(PROMPTS, GREEDY))
    pieces: dict[str, list[str]] = {}
    for output in llm.stream(PROMPTS, GREEDY.replace(output_kind=RequestOutputKind.DELTA)):
        pieces.setdefault(output.request_id.rpartition("-")[2], []).append(output.outputs[0].text)
    assert ["".join(pieces[str(index)]) for index in range(3)] == whole
    assert all(len(parts) > 3 for parts in pieces.values())


def test_stream_never_shows_text_that_a_stop_string_takes_back(llm: LLM) -> None:
    whole = llm.generate(PROMPTS[0], GREEDY)[0].outputs[0].text
    stop = whole[8:20]
    shown = ""
    for output in llm.stream(PROMPTS[0], GREEDY.replace(stop=stop, output_kind=RequestOutputKind.DELTA)):
        shown += output.outputs[0].text
        assert whole[:8].startswith(shown)
    assert shown == whole[:8]


def test_leaving_a_stream_early_frees_everything(llm: LLM) -> None:
    for _ in llm.stream(PROMPTS, SamplingParams(max_tokens=200, ignore_eos=True)):
        break
    assert llm.stats().num_used_blocks == 0
    assert llm.stats().num_running == 0
    assert texts(llm.generate(PROMPTS[:1], GREEDY)) == texts(llm.generate(PROMPTS[:1], GREEDY))


def test_two_streams_may_be_read_in_turns(llm: LLM) -> None:
    whole = texts(llm.generate(PROMPTS[:2], GREEDY))
    first, second = (llm.stream(prompt, GREEDY) for prompt in PROMPTS[:2])
    last = ["", ""]
    for pair in zip(first, second, strict=True):
        last = texts(pair)
    assert last == whole


def test_samples_share_the_prompt_and_differ(llm: LLM) -> None:
    before = len(list(llm.events))
    (output,) = llm.generate("My favourite animal is the", SamplingParams(n=8, max_tokens=16, seed=5))
    assert [completion.index for completion in output.outputs] == list(range(8))
    assert len({completion.text for completion in output.outputs}) > 4
    events = list(llm.events)[before:]
    forks = [event for event in events if isinstance(event, Forked)]
    copies = [event for event in events if isinstance(event, BlockCopied)]
    assert len(forks) == 7
    assert len(copies) == 7  # the last, partly filled block, once for each sample except the last owner
    prefilled = [event.num_tokens for event in events if isinstance(event, StepDone)]
    assert sum(prefilled) < len(output.prompt_token_ids) + 8 * 16 + 1


def test_a_seed_repeats_whatever_it_is_batched_with(llm: LLM) -> None:
    seeded = SamplingParams(max_tokens=12, seed=11)
    (alone,) = llm.generate(PROMPTS[2], seeded)
    crowd = llm.generate([*PROMPTS, PROMPTS[2]], [SamplingParams(max_tokens=20)] * 3 + [seeded])
    assert crowd[3].outputs[0].token_ids == alone.outputs[0].token_ids


def test_prefix_hits_are_counted_and_change_nothing(llm: LLM) -> None:
    prompt = list(range(1000, 1100))
    first = llm.generate(prompt, GREEDY)[0]
    again = llm.generate(prompt, GREEDY)[0]
    salted = llm.generate({"prompt_token_ids": prompt, "cache_salt": "mine"}, GREEDY)[0]
    assert (first.num_cached_tokens, again.num_cached_tokens, salted.num_cached_tokens) == (0, 96, 0)
    assert first.outputs[0].token_ids == again.outputs[0].token_ids == salted.outputs[0].token_ids


def test_logprobs_are_of_the_chosen_and_the_best(llm: LLM) -> None:
    (output,) = llm.generate(PROMPTS[0], GREEDY.replace(logprobs=3))
    completion = output.outputs[0]
    assert completion.logprobs is not None
    for token_id, row in zip(completion.token_ids, completion.logprobs, strict=True):
        assert len(row) == 3
        assert row[token_id].rank == 1
        assert row[token_id].logprob == max(entry.logprob for entry in row.values())
        assert row[token_id].decoded_token == llm.get_tokenizer().decode([token_id])
    total = sum(row[token_id].logprob for token_id, row in zip(completion.token_ids, completion.logprobs, strict=True))
    assert completion.cumulative_logprob == pytest.approx(total)


def test_bias_allowed_and_bad_words_bind(llm: LLM) -> None:
    tokenizer = llm.get_tokenizer()
    (forced,) = llm.generate(PROMPTS[0], GREEDY.replace(logit_bias={1000: 100.0}))
    assert set(forced.outputs[0].token_ids) == {1000}
    (allowed,) = llm.generate(PROMPTS[0], SamplingParams(allowed_token_ids=[5, 6, 7], max_tokens=12))
    assert set(allowed.outputs[0].token_ids) <= {5, 6, 7}
    assert "Paris" in texts(llm.chat(QUESTION, GREEDY))[0]
    assert "Paris" not in texts(llm.chat(QUESTION, GREEDY.replace(bad_words=["Paris"])))[0]
    assert tokenizer.encode(" Paris")


def test_all_logprobs_where_the_limit_is_the_vocabulary_and_prompts_whole_without_chunks() -> None:
    """If max_logprobs is the vocabulary's size, -1 is allowed. Without chunked prefill a step takes a whole prompt."""
    options = {"max_model_len": 128, "num_threads": 1, "num_gpu_blocks_override": 40}
    with LLM("smollm2", max_logprobs=49152, max_num_batched_tokens=16, enable_chunked_prefill=False, **options) as llm:
        (output,) = llm.generate([[5] * 90], SamplingParams(max_tokens=1, logprobs=-1), use_tqdm=False)
        assert len(output.outputs[0].logprobs[0]) == 49152
        assert [event.num_tokens for event in llm.events if isinstance(event, StepDone)] == [90]


def test_detokenize_off_gives_ids_only(llm: LLM) -> None:
    params = GREEDY.replace(detokenize=False, logprobs=1, prompt_logprobs=1)
    (output,) = llm.generate(PROMPTS[0], params)
    assert output.outputs[0].text == ""
    assert len(output.outputs[0].token_ids) == 12
    rows = [*output.outputs[0].logprobs, *output.prompt_logprobs[1:]]
    assert all(one.decoded_token is None for row in rows for one in row.values())


def test_a_bad_prompt_stops_the_call_before_anything_runs(llm: LLM) -> None:
    finished = sum(isinstance(event, Finished) for event in llm.events)
    with pytest.raises(InvalidRequestError, match=r"prompts\[1\]: the prompt holds token id 999999"):
        llm.generate([PROMPTS[0], [999999]], GREEDY)
    assert sum(isinstance(event, Finished) for event in llm.events) == finished
    assert llm.stats().num_waiting == 0


def test_prompts_come_in_every_form(llm: LLM) -> None:
    whole = texts(llm.generate(PROMPTS, SHORT))
    ids = [llm.get_tokenizer().encode(prompt) for prompt in PROMPTS]
    for prompts in (iter(PROMPTS), tuple(PROMPTS), dict.fromkeys(PROMPTS).keys(), ids, [np.array(one) for one in ids]):
        assert texts(llm.generate(prompts, SHORT)) == whole
    assert texts(llm.generate(np.array(ids[0]), SHORT)) == whole[:1]
    assert texts(llm.generate({"prompt": PROMPTS[0], "multi_modal_data": None}, SHORT)) == whole[:1]
    assert llm.generate([], SHORT) == []
    assert (
        texts(llm.generate(PROMPTS, iter([SHORT] * 3), use_tqdm=False, priority=[2, 0, 1], lora_request=None)) == whole
    )


def test_conversations_come_in_every_form(llm: LLM) -> None:
    (answer,) = texts(llm.chat(QUESTION, SHORT))
    assert texts(llm.chat(QUESTION[0]["content"], SHORT, priority=1)) == [answer]
    assert texts(llm.chat(QUESTION[0], SHORT)) == [answer]
    assert texts(llm.chat(iter([QUESTION, tuple(QUESTION)]), SHORT, False)) == [answer] * 2


REFUSED_CALLS = [
    (lambda llm: llm.generate(None), "prompts is None, allowed are text, token ids, a dict"),
    (lambda llm: llm.generate(b"raw"), "prompts is b'raw', allowed are text"),
    (lambda llm: llm.generate(3), "prompts is 3, allowed are text"),
    (lambda llm: llm.generate([None]), "a prompt is NoneType, allowed are"),
    (lambda llm: llm.generate(["a", 3]), r"prompts\[1\]: a prompt is int, allowed are"),
    (lambda llm: llm.generate([1, "a"]), "the prompt's token ids hold 'a', allowed are whole numbers"),
    (
        lambda llm: llm.generate("a", {"temperature": 0}),
        "sampling_params is {'temperature': 0}, allowed are a Sampling",
    ),
    (lambda llm: llm.generate("a", "greedy"), "sampling_params is 'greedy', allowed are a SamplingParams"),
    (lambda llm: llm.generate(["a", "b"], [SHORT, None]), "sampling_params is None, allowed are"),
    (lambda llm: llm.generate("a", priority="high"), "priority is 'high', allowed are a whole number"),
    (lambda llm: llm.generate("a", priority=2**70), "priority is 1180591620717411303424, allowed is a whole number"),
    (lambda llm: llm.generate("a", temprature=0), "generate has no argument 'temprature'; allowed are"),
    (lambda llm: llm.generate("a", prioritiy=0), "generate has no argument 'prioritiy'; did you mean 'priority'"),
    (lambda llm: llm.generate("a", lora_request="x"), "lora_request is 'x', allowed are a LoRARequest"),
    (lambda llm: llm.stream("a", use_tqdm=True), "stream has no argument 'use_tqdm'"),
    (lambda llm: llm.chat("Hello", chat_template_kwargs={"self": 1}), "chat_template_kwargs holds 'self'"),
    (lambda llm: llm.generate("a", use_tqdm=object), "use_tqdm is <class 'object'>, which makes no bar"),
    (lambda llm: llm.generate("a", use_tqdm="no"), "use_tqdm is 'no', allowed are True, False and"),
    (lambda llm: llm.chat(None), "messages is None, allowed are a list of dicts"),
    (lambda llm: llm.chat([]), "messages is empty, allowed are"),
    (lambda llm: llm.chat(["Hello", "Hi"]), r"messages\[0\] is 'Hello', allowed are a list of dicts"),
    (lambda llm: llm.chat([{"content": "Hello"}]), r"messages\[0\] is .*, allowed is an object with a 'role'"),
    (lambda llm: llm.chat("Hello", chat_template_kwargs=3), "chat_template_kwargs is 3, allowed is a dict"),
    (lambda llm: llm.chat("Hello", chat_template_kwargs={3: 4}), "chat_template_kwargs is {3: 4}, allowed is a dict"),
    (lambda llm: llm.chat("Hello", chat_template_kwargs={"messages": []}), "chat_template_kwargs holds 'messages'"),
    (
        lambda llm: llm.chat("Hello", chat_template_kwargs={"chat_template": []}),
        r"chat_template is \[\], allowed is text",
    ),
    (lambda llm: llm.chat("Hello", chat_template=3), "chat_template is 3, allowed is text"),
    (lambda llm: llm.chat("Hello", tools="x"), "tools is 'x', allowed is a list of dicts"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED_CALLS, ids=[message[:40] for _, message in REFUSED_CALLS])
def test_what_cannot_be_meant_is_refused_in_our_words(llm: LLM, call, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        call(llm)


def test_what_vllm_has_and_we_lack_is_named(llm: LLM) -> None:
    with pytest.raises(AttributeError, match=r"LLM\.sleep is not supported yet: close it"):
        llm.sleep()
    with pytest.raises(AttributeError, match="'LLM' object has no attribute 'generat'"):
        llm.generat  # noqa: B018
    assert not hasattr(llm, "reward")
    assert repr(llm) == "LLM('smollm2')"


def test_parameters_may_be_changed_and_requests_in_flight_keep_theirs(llm: LLM) -> None:
    params = llm.get_default_sampling_params()
    params.max_tokens, params.temperature, params.ignore_eos = 6, 0, True
    stream = llm.stream(PROMPTS[0], params)
    next(stream)
    params.max_tokens = 2
    *_, last = stream
    assert len(last.outputs[0].token_ids) == 6
    assert len(llm.generate(PROMPTS[0], params)[0].outputs[0].token_ids) == 2
    assert llm.get_default_sampling_params().max_tokens == 16
    params.min_tokens = 3
    with pytest.raises(InvalidRequestError, match="min_tokens is 3, allowed is 0 to max_tokens"):
        llm.generate(PROMPTS[0], params)


def test_the_prefix_cache_can_be_reset(llm: LLM) -> None:
    prompt = list(range(2000, 2100))
    assert [llm.generate(prompt, SHORT)[0].num_cached_tokens for _ in range(2)] == [0, 96]
    assert llm.reset_prefix_cache() is True
    assert llm.generate(prompt, SHORT)[0].num_cached_tokens == 0


def test_metrics_are_values(llm: LLM) -> None:
    def count(name: str) -> float:
        (found,) = (metric for metric in llm.get_metrics() if metric.name == f"vllm:{name}")
        if isinstance(found, Histogram):
            return found.count
        assert isinstance(found, Counter | Gauge)
        return found.value

    before = count("generation_tokens"), count("e2e_request_latency_seconds")
    llm.generate(PROMPTS, GREEDY)
    assert (count("generation_tokens"), count("e2e_request_latency_seconds")) == (before[0] + 36, before[1] + 3)
    assert count("num_requests_running") == 0
    (success,) = (one for one in llm.get_metrics() if one.labels.get("finished_reason") == "length")
    assert isinstance(success, Counter)
    assert success.labels["model_name"] == "smollm2"
    (ttft,) = (one for one in llm.get_metrics() if one.name == "vllm:time_to_first_token_seconds")
    assert isinstance(ttft, Histogram)
    assert ttft.buckets["+Inf"] == ttft.count


def test_metrics_are_kept_where_they_are_asked_for(tiny_folder: TinyFolder) -> None:
    with (
        LLM(tiny_folder("llama"), skip_tokenizer_init=True, num_gpu_blocks_override=20) as llm,
        pytest.raises(ConfigError, match="make the LLM with disable_log_stats=False"),
    ):
        llm.get_metrics()
    with pytest.raises(ConfigError, match="disable_log_stats is 'no', allowed are True and False"):
        LLM(tiny_folder("llama"), disable_log_stats="no")


def test_a_maker_of_bars_draws_the_progress(llm: LLM) -> None:
    class Bar:
        made: ClassVar[list["Bar"]] = []

        def __init__(self, total: int, desc: str) -> None:
            self.total, self.count, self.is_closed = total, 0, False
            self.made.append(self)

        def update(self, count: int) -> None:
            self.count += count

        def close(self) -> None:
            self.is_closed = True

    llm.generate(PROMPTS, SHORT, use_tqdm=Bar)
    (bar,) = Bar.made
    assert (bar.total, bar.count, bar.is_closed) == (3, 3, True)


def test_outputs_read_as_vllms(llm: LLM) -> None:
    (output,) = llm.generate(PROMPTS[0], GREEDY)
    assert re.match(
        r"RequestOutput\(request_id='\d+-0', prompt='The capital of France is', prompt_token_ids=\[.*\], "
        r"encoder_prompt=None, encoder_prompt_token_ids=None, prompt_logprobs=None, "
        r"outputs=\[CompletionOutput\(index=0, text='.*', token_ids=\[.*\], cumulative_logprob=None, logprobs=None, "
        r"finish_reason='length', stop_reason=None\)\], finished=True, metrics=RequestMetrics\(.*\), "
        r"lora_request=None, num_cached_tokens=\d+\)$",
        repr(output),
    )
    assert output.outputs[0].finished() is True


def test_engine_args_make_an_engine() -> None:
    args = EngineArgs("smollm2", max_model_len="64", max_num_seqs=1, tensor_parallel_size=1)
    args.max_model_len = 128
    assert args.create_engine_config().model.max_model_len == 128
    assert dataclasses.asdict(args)["max_num_seqs"] == vars(args)["max_num_seqs"] == 1
    assert (args.dtype, args) == ("auto", EngineArgs(max_model_len=128, max_num_seqs=1))
    with pytest.raises(ConfigError, match="no engine option 'max_num_seq'; did you mean 'max_num_seqs'"):
        EngineArgs(max_num_seq=4)
    with LLM.from_engine_args(args) as engine:
        assert len(engine.generate("Hello", GREEDY)) == 1


def test_unknown_options_and_closed_engines_are_named() -> None:
    with pytest.raises(ConfigError, match="no engine option 'max_num_seq'; did you mean 'max_num_seqs'"):
        LLM("smollm2", max_num_seq=4)
    with pytest.raises(ConfigError, match="no engine option 'self'"):
        EngineArgs(**{"self": 1})
    engine = LLM("smollm2", max_num_seqs=1, max_model_len=32)
    engine.close()
    engine.close()
    with pytest.raises(EngineDeadError, match="closed"):
        engine.generate("Hello", GREEDY)


def test_a_fault_in_one_output_ends_that_request_alone(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Naming the tokens of its logprobs fails; the other requests ask for no logprobs."""
    alone = texts(llm.generate(PROMPTS, GREEDY, use_tqdm=False))

    def break_names(*_: object) -> None:
        raise ZeroDivisionError("no name")

    monkeypatch.setattr("octavo.engine.lazy_logprobs.named", break_names)
    outputs = llm.generate(PROMPTS, [GREEDY, GREEDY.replace(logprobs=3), GREEDY], use_tqdm=False)
    reasons = [output.outputs[0].finish_reason for output in outputs]
    assert reasons == ["length", "error", "length"]
    assert outputs[1].outputs[0].stop_reason == "its output could not be made: ZeroDivisionError: no name"
    assert [texts(outputs)[place] for place in (0, 2)] == [alone[0], alone[2]]
    assert llm.stats().num_running == llm.stats().num_used_blocks == 0
    ends = [event.reason for event in llm.events if isinstance(event, Finished)]
    assert ends[-3:].count("error") == 1


def test_ids_are_scored_beside_the_best_ones(llm: LLM) -> None:
    (whole,) = llm.generate(PROMPTS[0], GREEDY.replace(max_tokens=3, logprobs=5), use_tqdm=False)
    asked = [7, 5, 49151, *whole.outputs[0].token_ids]
    params = GREEDY.replace(max_tokens=3, logprob_token_ids=asked, n=2, temperature=0.01)
    (scored,) = llm.generate(PROMPTS[0], params, use_tqdm=False)
    for one in scored.outputs:
        for row, token_id, expected in zip(one.logprobs, one.token_ids, whole.outputs[0].logprobs, strict=True):
            assert list(row) == list(dict.fromkeys([token_id, *asked]))
            for known in expected.keys() & row.keys():
                assert row[known].logprob == pytest.approx(expected[known].logprob, abs=1e-5)
                assert row[known].rank == expected[known].rank
            assert row[7].rank > 5
            assert row[7].logprob < min(best.logprob for best in expected.values())
    both = llm.generate(PROMPTS[0], params.replace(n=1, logprobs=2), use_tqdm=False)[0].outputs[0].logprobs[0]
    assert set(list(whole.outputs[0].logprobs[0])[:2]) | set(asked) == set(both)
    with pytest.raises(InvalidRequestError, match="logprob_token_ids holds token id 49152, allowed are 0 to 49151"):
        llm.generate(PROMPTS[0], SamplingParams(logprob_token_ids=[49152]))


def test_prompts_that_are_missing_or_elsewhere_are_told(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="prompts is None, allowed are text, token ids, "):
        llm.generate()
    with pytest.raises(
        InvalidRequestError, match=r"prompt_token_ids=\[\[1\]\] is not supported yet: pass token ids as"
    ):
        llm.generate(prompt_token_ids=[[1]], sampling_params=GREEDY)


@pytest.mark.parametrize("take", [pickle.dumps, copy.copy, copy.deepcopy])
def test_an_engine_says_that_it_cannot_be_copied(llm: LLM, take: Callable[[LLM], object]) -> None:
    with pytest.raises(TypeError, match="LLM holds a loaded model and can be neither copied nor pickled: make one"):
        take(llm)


def test_flat_logprobs_say_the_same(llm: LLM) -> None:
    params = GREEDY.replace(max_tokens=3, logprobs=2, prompt_logprobs=1, logprob_token_ids=[7])
    (plain,) = llm.generate(PROMPTS[0], params, use_tqdm=False)
    (flat,) = llm.generate(PROMPTS[0], params.replace(flat_logprobs=True), use_tqdm=False)
    assert isinstance(flat.outputs[0].logprobs, FlatLogprobs)
    assert isinstance(flat.prompt_logprobs, FlatLogprobs)
    assert list(flat.outputs[0].logprobs) == plain.outputs[0].logprobs
    assert [row or None for row in flat.prompt_logprobs] == plain.prompt_logprobs
    deltas = llm.stream(PROMPTS[0], params.replace(flat_logprobs=True, output_kind=RequestOutputKind.DELTA))
    assert [row for output in deltas for row in output.outputs[0].logprobs] == plain.outputs[0].logprobs


@pytest.mark.parametrize("kind", [RequestOutputKind.CUMULATIVE, RequestOutputKind.DELTA])
def test_stream_interval_joins_tokens_after_the_first(llm: LLM, kind: RequestOutputKind) -> None:
    params = GREEDY.replace(max_tokens=10, output_kind=kind)
    whole = list(llm.stream(PROMPTS[0], params))[-1].outputs[0]
    outputs = [one.outputs[0] for one in llm.stream(PROMPTS[0], params.replace(stream_interval=4))]
    if kind is RequestOutputKind.DELTA:
        assert [len(one.token_ids) for one in outputs] == [1, 4, 4, 1]
        assert "".join(one.text for one in outputs) == llm.generate(PROMPTS[0], params)[0].outputs[0].text
    else:
        assert [len(one.token_ids) for one in outputs] == [1, 5, 9, 10]
        assert outputs[-1] == whole
    with pytest.raises(InvalidRequestError, match="stream_interval is 0, allowed is 1 or more"):
        SamplingParams(stream_interval=0)


def test_stream_interval_tells_a_sample_s_end_at_once(llm: LLM) -> None:
    """Though its siblings go on, and each has its first token when it begins."""
    params = SamplingParams(n=3, max_tokens=24, seed=5, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
    (whole,) = llm.generate(PROMPTS[0], params)
    stop = whole.outputs[1].token_ids[6]
    asked = params.replace(stop_token_ids=[stop], stream_interval=100)
    outputs = list(llm.stream(PROMPTS[0], asked))
    (ends,) = llm.generate(PROMPTS[0], asked)
    num_ends = len({len(one.token_ids) for one in ends.outputs})
    assert num_ends > 1, "the stop token ends them at different steps"
    assert len(outputs) <= 3 + num_ends
    for end in ends.outputs:
        mine = [one for output in outputs for one in output.outputs if one.index == end.index]
        assert [token for one in mine for token in one.token_ids] == end.token_ids
        assert [one.finish_reason for one in mine] == [None] * (len(mine) - 1) + [end.finish_reason]


def test_the_whole_vocabulary_only_where_it_is_allowed(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="logprobs is -1, allowed is 0 to max_logprobs = 20"):
        llm.generate(PROMPTS[0], SamplingParams(logprobs=-1))
    with pytest.raises(ConfigError, match="logprobs_mode is 'cooked_logits', allowed are 'raw_logprobs', "):
        LLM("smollm2", logprobs_mode="cooked_logits")


def test_a_token_that_cannot_be_drawn_ends_its_request_alone(llm: LLM) -> None:
    """With log-probabilities, which such a token lacks."""
    (the,) = llm.get_tokenizer().encode(" the", add_special_tokens=False)
    bad = SamplingParams(logprobs=2, allowed_token_ids=[the], bad_words=[" the the"])
    outputs = llm.generate(PROMPTS, [GREEDY, bad, GREEDY], use_tqdm=False)
    assert [output.outputs[0].finish_reason for output in outputs] == ["length", "error", "length"]
    last = outputs[1].outputs[0]
    assert last.token_ids == [the]
    assert len(last.logprobs) == 1
    assert last.stop_reason.startswith("no token could be drawn: ")
    with pytest.raises(InvalidRequestError, match="allowed_token_ids holds only bad_words and end and stop tokens"):
        llm.generate(PROMPTS[0], SamplingParams(allowed_token_ids=[2], min_tokens=1, logprobs=1))
