"""The shapes of requests and answers, as they are on the wire; data only."""
