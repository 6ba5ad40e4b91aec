"""A sampler of low discrepancy."""

from __future__ import annotations

import warnings

import optuna


def halton(*, seed: int) -> optuna.samplers.BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return optuna.samplers.QMCSampler(qmc_type="halton", scramble=True, seed=seed)
