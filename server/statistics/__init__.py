"""What the engine does now, as a stream: `/metrics` read once per interval for all who listen.

`reading` is one look at the metrics, `summary` compares two, `channel` does so while somebody
listens and tells everybody the same bytes.
"""
