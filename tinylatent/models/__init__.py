"""Models: what the engine may ask of one, our decoder with its blocks, and the wrapper round Hugging Face models."""
