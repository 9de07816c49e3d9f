"""MobileCLIP toolkit: small CLIP models from checkpoint to verified, measured bundles on phones."""

__version__ = "0.1.0"
