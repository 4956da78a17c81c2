"""Load a model and complete a few prompts at once."""

from octavo import LLM, SamplingParams

llm = LLM("smollm2")
params = SamplingParams(temperature=0, max_tokens=32)

for output in llm.generate(["Paper was invented in", "A lighthouse is", "The sea is"], params):
    print(f"{output.prompt!r} -> {output.outputs[0].text!r}")

question = [{"role": "user", "content": "Name three primary colours."}]
print(llm.chat(question, params)[0].outputs[0].text)

llm.close()
