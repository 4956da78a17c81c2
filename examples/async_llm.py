"""Answer several questions at once from an asyncio program, print each when it is done, and abort one."""

import asyncio

from octavo import AsyncLLM, RequestOutputKind, SamplingParams

QUESTIONS = ["The capital of Italy is", "Water boils at", "A haiku about rain:"]
PARAMS = SamplingParams(temperature=0, max_tokens=24, output_kind=RequestOutputKind.FINAL_ONLY)


async def answer(llm: AsyncLLM, question: str) -> None:
    async for output in llm.generate(question, PARAMS):
        print(f"{question}{output.outputs[0].text!r}")


async def first_words(llm: AsyncLLM) -> None:
    """Read a story while it is generated; leaving the loop ends it and frees its memory."""
    params = SamplingParams(temperature=0, max_tokens=500)
    async for output in llm.generate("Once upon a time", params, "story"):
        if len(output.outputs[0].token_ids) >= 10:
            print(f"Once upon a time{output.outputs[0].text!r} ...")
            break


async def main() -> None:
    llm = AsyncLLM("smollm2")
    try:
        await asyncio.gather(first_words(llm), *(answer(llm, question) for question in QUESTIONS))
        await llm.check_health()  # raises EngineDeadError, were the engine gone
    finally:
        llm.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
