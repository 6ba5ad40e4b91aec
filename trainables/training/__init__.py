"""Training: loop, model, optimizers, features."""
