"""Who runs: requests wait, start, fork, are preempted and end here. No tensors here, only numbers.

Scheduler plans each step: running sequences continue, waiting ones start, samples fork. It asks the other files;
docs/files.md has a line for each.
"""
