"""Other engines beside ours, each in an environment of its own: `python -m benchmarks.peers`."""
