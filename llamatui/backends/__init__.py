"""Token ids in, logits out: checkpoint files, the KV cache and one file per backend."""
