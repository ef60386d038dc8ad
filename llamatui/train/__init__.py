"""From raw text to a model: vocabulary, token ids, training with PyTorch, samples."""
