"""What the files of a model's tokenizer are called: `story.bin` has `story.tokenizer.model` beside it."""

MODEL, JSON, BINARY = ".tokenizer.model", ".tokenizer.json", ".tokenizer.bin"
CONFIG = ".tokenizer_config.json"
"""The vocabulary, in the format that the name tells, and what it has no place for."""

TOKENIZER_ENDS = (MODEL, JSON, BINARY, CONFIG)
"""What follows the model's stem."""
