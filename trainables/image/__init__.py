"""Images: data, backbones, augmentation."""
