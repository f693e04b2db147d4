"""The DP-SGD engine: plan, sampler, clipping, noise, step."""
