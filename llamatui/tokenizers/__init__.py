"""Text to token ids and back, streaming decode, chat formats."""
