"""Any source to llamatui checkpoints and back (not built yet)."""
