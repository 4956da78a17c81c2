"""Who runs: requests wait, start, fork, are preempted and end here. No tensors here, only numbers.

scheduler.py is the step: continue the running, start the waiting, fork samples, seal the plan. The other files are
what it asks; docs/files.md has a line for each.
"""
