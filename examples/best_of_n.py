"""Sample one prompt eight times and keep the most likely answer.

The prompt is computed once. Its full KV blocks are shared by all samples; only the last, partly filled one is
copied when a sample writes into it. The report at the end counts both.
"""

from octavo import LLM, CompletionOutput, SamplingParams
from octavo.observe.tally import Tally


def mean_logprob(completion: CompletionOutput) -> float:
    assert completion.cumulative_logprob is not None, "asked for with logprobs=0"
    return completion.cumulative_logprob / len(completion.token_ids)


with LLM("smollm2") as llm:
    tally = Tally(llm.events)
    question = "Suggest a title for a story about a lighthouse keeper who folds paper birds for passing ships."
    params = SamplingParams(n=8, temperature=0.8, top_p=0.95, max_tokens=24, seed=1, logprobs=0)
    answer = llm.chat([{"role": "user", "content": question}], params)[0]

for completion in sorted(answer.outputs, key=mean_logprob, reverse=True):
    print(f"{mean_logprob(completion):7.3f}  {completion.text.strip()!r}")
for label, text in tally.report().lines():
    print(f"{label:>12}  {text}")
