"""Core: seeds and streams, atomic files, checksums and identities, the environment: what every room may use."""
