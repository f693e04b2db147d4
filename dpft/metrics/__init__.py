"""What written texts are scored by: one file a metric, over texts alone. Figures are post-processing of the texts, and
as private as the references are."""

from dpft.metrics.score import METRICS, check_metrics, score

__all__ = ["METRICS", "check_metrics", "score"]
