"""Pretrained models: where they come from, and the classifier built on an encoder."""
