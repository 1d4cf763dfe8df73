"""Models: the protocol the engine relies on, our decoder and its blocks, and a wrapper for Hugging Face models."""
