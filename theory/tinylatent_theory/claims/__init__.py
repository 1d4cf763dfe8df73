"""The ledger: statements about latent chain-of-thought, each checked by the function that bears its name."""
