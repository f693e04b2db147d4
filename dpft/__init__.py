"""dpft: differentially private fine-tuning of a small set of added parameters."""
