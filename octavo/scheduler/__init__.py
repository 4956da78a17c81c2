"""Who runs: requests wait, start, fork, are preempted and end here. No tensors here, only numbers.

Read in this order:

    scheduler.py         the step: continue the running, start the waiting, fork samples, seal the plan
    budget.py            a step's tokens           seats.py      the worker's rows
    queues.py            the waiting               policy.py     who is better than whom
    giving_way.py        who makes room for a better one
    draft.py             a plan being written      roster.py     who is here, and under which id
    admission.py         what is refused           stop.py       when a sequence ends
    prompt_logprobs.py   each prompt position reported once
    journal.py           what is written into the event log
"""
