"""Engine: plans of thoughts run over a model, and the one record of what happened."""
