"""tinylatent: a laboratory for latent chain-of-thought."""

__version__ = "0.1.0"
