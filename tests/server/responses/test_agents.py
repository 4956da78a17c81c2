"""OpenAI's Agents SDK, unchanged, against a server: tools, thoughts, streams, conversations that the server keeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import openai
import pydantic
import pytest

from octavo.outputs import RequestOutput
from octavo.request import Request
from tests.server.live_server import serve
from tests.server.scripted_engine import app_of
from tests.server.speaking_engine import SpeakingEngine
from tests.server.test_tools import CALL, HERMES

agents = pytest.importorskip("agents", reason="needs OpenAI's Agents SDK: make agents")


class ManyTurns(SpeakingEngine):
    """Says one text after the other. prompts: what it was told before each."""

    def __init__(self, *turns: str) -> None:
        super().__init__("", HERMES)
        self.turns = list(turns)
        self.prompts: list[str] = []

    async def _say(self, request: Request) -> AsyncIterator[RequestOutput]:
        self.prompts.append(self.prompt)
        self.says = self.turns.pop(0)
        async for output in super()._say(request):
            yield output


class Report(pydantic.BaseModel):
    city: str
    sky: str


def weather(city: str) -> str:
    """Tells the weather."""
    return f"Sun in {city}"


def run(engine: ManyTurns, story: Callable[[Any], Awaitable[None]], **options: Any) -> None:
    """The story gets an agent with a tool."""
    agents.set_tracing_disabled(True)

    async def told() -> None:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0) as client:
            model = agents.OpenAIResponsesModel("tiny", client)
            tools = [agents.function_tool(weather)]
            await story(agents.Agent(name="A", instructions="Be brief.", tools=tools, model=model, **options))

    with serve(app_of(engine)) as address:
        asyncio.run(told())


def test_an_agent_thinks_calls_and_answers() -> None:
    engine = ManyTurns(f"<think>Hm.</think>Let me look. {CALL}{CALL}", "<think>So.</think>It is sunny.", "It is.")

    async def story(agent: Any) -> None:
        result = await agents.Runner.run(agent, "Weather in Rome?")
        assert result.final_output == "It is sunny."
        kinds = [type(item).__name__ for item in result.new_items]
        assert kinds == [
            *("ReasoningItem", "MessageOutputItem", "ToolCallItem", "ToolCallItem"),
            *("ToolCallOutputItem", "ToolCallOutputItem", "ReasoningItem", "MessageOutputItem"),
        ]
        assert result.context_wrapper.usage.output_tokens_details.reasoning_tokens > 1
        again = await agents.Runner.run(agent, [*result.to_input_list(), {"role": "user", "content": "Sure?"}])
        assert again.final_output == "It is."

    run(engine, story)
    assert engine.prompts[1].startswith("weather;system:  Be brief.user:  Weather in Rome?assistant: Hm. Let me look.")
    assert engine.prompts[1].endswith("tool:  Sun in Rometool:  Sun in Romeassistant:")
    assert engine.prompts[2].endswith("assistant: So. It is sunny.user:  Sure?assistant:")


def test_an_agent_streams() -> None:
    engine = ManyTurns(f"Let me look. {CALL}", "It is sunny.")

    async def story(agent: Any) -> None:
        result = agents.Runner.run_streamed(agent, "Weather in Rome?")
        names, text = [], ""
        async for event in result.stream_events():
            if event.type == "run_item_stream_event":
                names.append(event.name)
            elif event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                text += event.data.delta
        assert result.final_output == "It is sunny."
        assert text == "Let me look.It is sunny."
        assert sorted(names) == ["message_output_created", "message_output_created", "tool_called", "tool_output"]

    run(engine, story)


def test_an_agent_leaves_its_conversation_to_the_server() -> None:
    engine = ManyTurns(CALL, '{"city": "Rome", "sky": "sun"}')

    async def story(agent: Any) -> None:
        result = await agents.Runner.run(agent, "Weather in Rome?", auto_previous_response_id=True)
        assert result.final_output == Report(city="Rome", sky="sun")

    run(engine, story, output_type=Report)
    assert engine.prompts[1].endswith("Weather in Rome?assistant:  Rometool:  Sun in Romeassistant:")
