"""What a training run looks like while it goes on, and what it leaves to look at.

watch.py     chooses how to show it, and what is done at its end
lines.py     lines of text, for logs and pipes
live.py      the live view in a terminal, and worker.py, the thread it watches
chart.py     a loss curve in braille
metrics.py   metrics.jsonl: written, cut when a run is resumed, read again
plot.py      loss.svg, where matplotlib is installed
stop.py      Ctrl+C, q, and a polite kill
"""
