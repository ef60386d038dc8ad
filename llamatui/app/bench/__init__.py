"""What `llamatui bench` measures: speed, bits per byte of a text, and how two backends differ."""
