"""One file per way of a peer, run by the peer's own Python; these import the peer, nothing else."""
