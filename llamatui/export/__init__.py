"""Any source to llamatui checkpoints and back."""
