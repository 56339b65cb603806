"""Training: configuration, objective, trainer, checkpoints."""
