"""Optuna: the study, its storage and space, trial endings, finalists."""
