"""What a GPU machine proves and measures: `python -m benchmarks.gpu`."""
