"""Engine: runs plans of thoughts over a model and records them as traces."""
