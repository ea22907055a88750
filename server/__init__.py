"""The server: an OpenAI-style HTTP door in front of the engine process."""
