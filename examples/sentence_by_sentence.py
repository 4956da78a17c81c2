"""Write a story sentence by sentence: of four drafts of each sentence, the likeliest goes on.

The drafts are branches of a session. They share the KV blocks of the story so far, and each round computes only the
last, partly filled block of each draft again. The report at the end counts the tokens that were found in the cache.
"""

from octavo import LLM, RequestOutput, SamplingParams
from octavo.observe.tally import Tally

params = SamplingParams(temperature=0.8, max_tokens=24, stop=".", include_stop_str_in_output=True, seed=1, logprobs=0)


def mean_logprob(output: RequestOutput) -> float:
    draft = output.outputs[0]
    assert draft.cumulative_logprob is not None, "asked for with logprobs=0"
    return draft.cumulative_logprob / len(draft.token_ids)


with LLM("smollm2") as llm:
    tally = Tally(llm.events)
    with llm.session("The lighthouse keeper folded paper birds for passing ships.") as story:
        best = 0
        for _ in range(4):
            drafts = story.generate(params, story.fork(4, best))
            best = max(drafts, key=lambda number: mean_logprob(drafts[number]))
            for number, output in drafts.items():
                print(f"{mean_logprob(output):7.3f}  {output.outputs[0].text.strip()!r}")
                if number != best:
                    story.prune(number)
        print("\n" + (story.branches[best].text or ""))
    for label, text in tally.report().lines():
        print(f"{label:>12}  {text}")
