"""Scores of a model: zero-shot classification, retrieval, the average over DataComp's 38 data sets."""
