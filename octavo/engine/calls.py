"""What a call of the Python API was given: checked, and in one form.

Callers pass one value or many, lists or generators, None for the default. A value without a meaning raises
InvalidRequestError, which says what is allowed; Python's own errors never reach the caller.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from octavo.engine.input import Prompt
from octavo.errors import InvalidRequestError
from octavo.lora_request import LoRARequest
from octavo.request import Request
from octavo.sampling_params import SamplingParams
from octavo.shown import shown, suggestion
from octavo.vllm_options import CALL_ARGUMENTS, METHODS, why_not

Message = Mapping[str, Any]

Value = TypeVar("Value")

_PROMPTS = "allowed are text, token ids, a dict with 'prompt' or 'prompt_token_ids', and a list of these"
_MESSAGES = "allowed are a list of dicts with 'role' and 'content', and a list of such lists"


def conversation_list(messages: object) -> list[Sequence[Message]]:
    """One conversation or many: a text is one user message, a dict is one message."""
    if isinstance(messages, str):
        messages = {"role": "user", "content": messages}
    if isinstance(messages, Mapping):
        messages = [messages]
    if messages is None or isinstance(messages, bytes | bytearray) or not isinstance(messages, Iterable):
        raise InvalidRequestError(f"messages is {shown(messages)}, {_MESSAGES}")
    many = listed("messages", messages)
    if not many:
        raise InvalidRequestError(f"messages is empty, {_MESSAGES}")
    if isinstance(many[0], Mapping):
        return [many]
    return [_conversation(index, one) for index, one in enumerate(many)]


def template_options(variables: object, **options: object) -> dict[str, Any]:
    """A chat template's arguments. variables: chat_template_kwargs, which override options."""
    variables = {} if variables is None else variables
    if not isinstance(variables, Mapping) or any(not isinstance(name, str) for name in variables):
        raise InvalidRequestError(f"chat_template_kwargs is {shown(variables)}, allowed is a dict of names and values")
    for name in variables:
        if name in ("self", "messages"):
            raise InvalidRequestError(f"chat_template_kwargs holds {name!r}, which is the call's own: leave it out")
    options |= variables
    template, tools = options.get("chat_template"), options.get("tools")
    if template is not None and not isinstance(template, str):
        raise InvalidRequestError(f"chat_template is {shown(template)}, allowed is text: a name, Jinja or a file")
    if tools is not None and (isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Sequence)):
        raise InvalidRequestError(f"tools is {shown(tools)}, allowed is a list of dicts")
    return options


def id_list(request_ids: object) -> list[str]:
    """One request id or several."""
    many = [request_ids] if isinstance(request_ids, str) else listed_or_one(request_ids)
    for one in many:
        if not isinstance(one, str):
            raise InvalidRequestError(f"request_id is {shown(one)}, allowed are a text and a list of texts")
    return many


def check_rank(rank: object, num_engines: int) -> None:
    """Check the number of the engine that a request names, if it names one."""
    if rank is not None and (not isinstance(rank, int) or isinstance(rank, bool) or not 0 <= rank < num_engines):
        allowed = f"0 to {num_engines - 1}" if num_engines > 1 else "0: there is one engine"
        raise InvalidRequestError(f"data_parallel_rank is {shown(rank)}, allowed is {allowed}")


def refuse_unknown(method: Callable[..., Any], given: Mapping[str, object]) -> None:
    """Refuse arguments that a method does not have, except vLLM's at values that ask for nothing."""
    if (refusal := why_not(CALL_ARGUMENTS, given)) is not None:
        raise InvalidRequestError(refusal)
    for name in given.keys() - CALL_ARGUMENTS.keys():
        known = inspect.signature(method).parameters.keys() - {"self", "others"}
        raise InvalidRequestError(f"{method.__name__} has no argument {shown(name)}; {suggestion(name, known)}")


def missing_attribute(owner: object, name: str) -> AttributeError:
    """The error for an attribute that does not exist."""
    kind = type(owner).__name__
    if name in METHODS:
        return AttributeError(f"{kind}.{name} is not supported yet: {METHODS[name]}", name=name, obj=owner)
    return AttributeError(f"{kind!r} object has no attribute {name!r}", name=name, obj=owner)


def not_to_be_copied(owner: object) -> TypeError:
    """The error for `pickle` and `copy`, which other processes and actors use."""
    kind = type(owner).__name__
    return TypeError(f"{kind} holds a loaded model and can be neither copied nor pickled: make one where it is used")


def _conversation(index: int, messages: object) -> Sequence[Message]:
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Iterable):
        raise InvalidRequestError(f"messages[{index}] is {shown(messages)}, {_MESSAGES}")
    return listed(f"messages[{index}]", messages)


def listed(name: str, values: Iterable[Any]) -> list[Any]:
    """All values as a list. A generator is the caller's code and may raise anything."""
    try:
        return list(values)
    except TypeError as error:  # such as an array without dimensions
        raise InvalidRequestError(f"{name} is {shown(values)}, which cannot be listed: {error}") from None


def listed_or_one(values: object) -> list[Any]:
    return listed("a list", values) if isinstance(values, Iterable) else [values]


def prompt_list(prompts: object) -> list[Prompt]:
    """One prompt or many: text, a dict and a list of ints are one."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if prompts is None or isinstance(prompts, bytes | bytearray) or not isinstance(prompts, Iterable):
        raise InvalidRequestError(f"prompts is {shown(prompts)}, {_PROMPTS}")
    many: list[Any] = prompts if isinstance(prompts, list) else listed("prompts", prompts)
    return [many] if many and _is_whole(many[0]) else many


def params_list(params: object, count: int, default: Callable[[], SamplingParams]) -> list[SamplingParams]:
    """One for all, one each, or None for the model's defaults."""
    if params is None:
        return [default()] * count
    many = [params] * count if isinstance(params, SamplingParams | str | bytes | Mapping) else listed_or_one(params)
    if len(many) == 1 and not isinstance(params, Sequence):
        many = many * count
    for one in many:
        if not isinstance(one, SamplingParams):
            raise InvalidRequestError(
                f"sampling_params is {shown(one)}, allowed are a SamplingParams, a list of one each, and None"
            )
    return _one_each("sampling_params", many, count)


def priority_list(priority: object, count: int) -> list[int]:
    """One for all, one each, or None for 0."""
    if priority is None:
        return [0] * count
    is_one = isinstance(priority, str | bytes) or _is_whole(priority)
    many: list[Any] = [priority] * count if is_one else listed_or_one(priority)
    for one in many:
        if not _is_whole(one):
            raise InvalidRequestError(f"priority is {shown(one)}, allowed are a whole number, and a list of one each")
    return _one_each("priority", [operator.index(one) for one in many], count)


def lora_list(lora_request: object, count: int) -> list[LoRARequest | None]:
    """One adapter for all, one or None each, or None for none."""
    is_one = lora_request is None or isinstance(lora_request, LoRARequest)
    many: list[Any] = [lora_request] * count if is_one else listed_or_one(lora_request)
    for one in many:
        if one is not None and not isinstance(one, LoRARequest):
            raise InvalidRequestError(
                f"lora_request is {shown(one)}, allowed are a LoRARequest, a list with one or None each, and None"
            )
    return _one_each("lora_request", many, count)


def requests_of(
    make: Callable[..., Request],
    call: int,
    prompts: Sequence[Prompt],
    params_each: Sequence[Any],
    priorities: Sequence[int],
    adapters: Sequence[LoRARequest | None] = (),
) -> list[Request]:
    """A call's requests. An error names the prompt that it is about, if there are several. adapters: of each prompt;
    none are given if no prompt has one."""
    requests = []
    own = [{"lora_request": adapter} for adapter in adapters] or [{}] * len(prompts)
    columns = prompts, params_each, priorities, own
    for index, (prompt, params, priority, others) in enumerate(zip(*columns, strict=True)):
        try:
            requests.append(make(f"{call}-{index}", prompt, params, priority, **others))
        except InvalidRequestError as refusal:
            if len(prompts) == 1:
                raise
            raise InvalidRequestError(f"prompts[{index}]: {refusal}") from None
    return requests


def _one_each(name: str, values: list[Value], count: int) -> list[Value]:
    if len(values) != count:
        raise InvalidRequestError(
            f"{name} holds {len(values)} values for {count} prompts, allowed are one, or one each"
        )
    return values


def _is_whole(value: object) -> bool:
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return not isinstance(value, bool)
