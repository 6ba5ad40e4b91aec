"""What a bank of augmented images that several policies share could save at most.

    python benchmarks/view_bank.py [--train 1000] [--size 96] [--views 4]

Each policy has views of its own. A view's crop and flip depend on its number and the image alone, so two
policies that then draw the same operation at the same strength see the very same image, and a bank of
(operation, strength) views could pass it through the trunk once. This draws the views of policies that a
search would compare, on Fashion-MNIST, and counts images that are equal byte for byte: no sharing that is
exact saves more. A complete bank, from which every policy would be drawn, is counted too. Prints one JSON
line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from pathlib import Path

from trainables.image import augment, backbones
from trainables.image.data import DataConfig, load
from trainables.image.hparams import ImageHParams as HParams
from trainables.seeds import derived_seed, sample_seeds

SETS: dict[str, list[HParams]] = {
    "four policies": [
        HParams(policy="none"),
        HParams(policy="flip_crop"),
        HParams(policy="trivial_augment"),
        HParams(policy="rand_augment"),
    ],
    "rand_augment of one operation at eight strengths": [
        HParams(policy="rand_augment", ra_ops=1, ra_magnitude=strength) for strength in range(2, 31, 4)
    ],
}


def main() -> None:
    """Draws, counts and prints the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, default in (("train", 1000), ("size", 96), ("views", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    preprocessing = backbones.build("efficientnet_lite0", image_size=asked.size).preprocessing
    config = DataConfig(source="fashion-mnist", train_limit=asked.train, validation_limit=10, test_limit=10)
    with tempfile.TemporaryDirectory() as folder:
        data = load(config, cache_dir=Path(folder))
        frames = data.frames(preprocessing.frame_size, preprocessing.interpolation)
        indices = data.splits["train"]
        found = {}
        for name, policies in SETS.items():
            drawn, different = 0, set()
            for hparams in policies:
                policy = augment.build(hparams, image_size=asked.size)
                for view in range(1 if policy.is_identity else asked.views):
                    seeds = sample_seeds(derived_seed("view", view), indices)
                    images = policy(frames[indices], seeds)
                    drawn += len(images)
                    for index, image in zip(indices.tolist(), images, strict=True):
                        content = hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest()
                        different.add((index, content))
            found[name] = {
                "passes": drawn,
                "passes_shared": len(different),
                "saved": round(1 - len(different) / drawn, 4),
            }
    moved = len(augment.OPERATIONS) * augment.BINS
    line = {"benchmark": "view_bank", "train": asked.train, "size": asked.size, "views": asked.views}
    print(json.dumps({**line, "rows": found, "passes_of_a_complete_bank": asked.train * moved}))


if __name__ == "__main__":
    main()
