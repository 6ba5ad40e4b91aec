"""One trial of transfer learning: pure PyTorch, usable without Ray, MLflow or Optuna."""
