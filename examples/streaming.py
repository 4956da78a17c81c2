"""Read several answers while they are generated; leave the loop early and the rest is aborted."""

from octavo import LLM, RequestOutputKind, SamplingParams

prompts = ["The three primary colours are", "To fold a paper boat, first"]
params = SamplingParams(temperature=0, max_tokens=48, output_kind=RequestOutputKind.DELTA)

with LLM("smollm2") as llm:
    texts = dict.fromkeys(range(len(prompts)), "")
    for output in llm.stream(prompts, params):
        index = int(output.request_id.rpartition("-")[2])  # request ids end in the prompt's index
        texts[index] += "".join(completion.text for completion in output.outputs)
        if len(texts[0]) > 150:
            break

for prompt, text in zip(prompts, texts.values(), strict=True):
    print(f"{prompt}{text}\n")
