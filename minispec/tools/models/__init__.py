"""Getting models: from a name, a GGUF file or a Hugging Face folder, on a backend."""
