"""How cost grows with work: steps over context and load, host work, memory, the server's share."""
