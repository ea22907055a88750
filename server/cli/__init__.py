"""The command line: serve, generate, chat."""
