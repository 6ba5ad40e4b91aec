from __future__ import annotations

import torch

from trainables.training.temperature import cross_entropy, inverse_temperatures


def test_scores_of_a_known_temperature_are_found_out() -> None:
    numbers = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 5, generator=numbers, dtype=torch.float64) * 2
    labels = torch.multinomial(logits.softmax(1), 1, generator=numbers)[:, 0]
    factors = inverse_temperatures(torch.stack([logits, logits / 7, logits * 3 + 1]), labels)
    torch.testing.assert_close(factors, torch.tensor([1.0, 7.0, 1 / 3]).double(), rtol=0.05, atol=0)


def test_no_other_temperature_has_less_cross_entropy() -> None:
    numbers = torch.Generator().manual_seed(1)
    scores = torch.randn(5000, 3, generator=numbers, dtype=torch.float64)
    labels, weights = torch.arange(5000) % 3, torch.rand(5000, generator=numbers)
    scores[torch.arange(5000), labels] += 1
    (factor,) = inverse_temperatures(scores[None], labels, weights)
    least = cross_entropy(scores * factor, labels, weights)
    assert all(cross_entropy(scores * factor * other, labels, weights) > least for other in (0.98, 1.02))


def test_a_few_scores_without_a_mistake_are_not_certain() -> None:
    sure = {}
    for count in (3, 300):
        labels = torch.arange(count) % 3
        scores = torch.eye(3, dtype=torch.float64)[labels]
        (factor,) = inverse_temperatures(scores[None], labels)
        sure[count] = float((scores * factor).softmax(1).max(1).values.mean())
    assert 0.7 < sure[3] < 0.9
    assert 0.99 < sure[300] < 1
