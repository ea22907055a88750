"""The engine in a process of its own, and the client that talks to it.

Offline use needs none of this: `EngineCore` runs inline.
"""
