"""Block bookkeeping: which block of KV memory holds which tokens of whom. No tensors here, only numbers.

Read in this order:

    block.py         a block's name, and the name of its content
    block_table.py   where one sequence's tokens lie
    block_pool.py    free, cached, owned: who has which block
    prefix_tree.py   finding blocks by content
    groups.py        layers with windows, and how one pool serves them too
    kv_cache.py      the one door: start, grow, fork, free
    invariants.py    proof that the books balance
    usage.py         figures for reports          journal.py   what is written into the event log
"""
