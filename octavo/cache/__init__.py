"""Block bookkeeping: which block of KV memory holds which tokens. No tensors here, only numbers."""
