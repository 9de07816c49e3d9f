"""Reinforced data sets: augmentations, captions and teachers' embeddings, computed once (MobileCLIP, arXiv 2311.17049, section 4)."""

from mobileclip.reinforce.config import EnsembleConfig, load_ensemble
from mobileclip.reinforce.engine import Summary, reinforce

__all__ = ["EnsembleConfig", "Summary", "load_ensemble", "reinforce"]
