"""Texts: where they come from, tokens, augmentation, and the networks that read them."""
