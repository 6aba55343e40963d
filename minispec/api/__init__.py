"""The Python interface: load a model, generate, stream, chat, and compare methods."""
