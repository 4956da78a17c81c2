"""Block bookkeeping: which block of KV memory holds which tokens of whom. No tensors here, only numbers.

The scheduler asks KVCache (kv_cache.py) and nothing else here. docs/files.md has a line for each file.
"""
