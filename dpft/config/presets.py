"""Published settings by name: a preset's name as ``method.name`` stands for a whole ``[method]`` table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_COMPACTER: Mapping[str, Any] = {
    "name": "compacter",
    "n": 4,
    "reduction": 32,
    "shared_rule": True,
    "bias": True,
    "activation": "gelu_new",
    "placement": "both",
    "norms": True,
    # Not the published start: a rule of standard deviation 1e-4 leaves the factors gradients that noise drowns.
    "init": "private",
}

_SPARSE_ADAPTER: Mapping[str, Any] = {
    "name": "sparse-adapter",
    "bottleneck": 64,
    "bias": True,
    "activation": "relu",
    "placement": "both",
    "norms": False,
    "input_norm": True,
    "init": "normal",
    "init_std": 0.02,
    "density": 0.6,
    "mask": "random",
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Houlsby et al. 2019, arXiv 1902.00751
    "houlsby2019": {
        "name": "adapter",
        "bottleneck": 64,
        "bias": True,
        "activation": "gelu",
        "placement": "both",
        "norms": True,
        "init": "normal",
        "init_std": 1e-3,
    },
    # Pfeiffer et al. 2020, arXiv 2005.00247
    "pfeiffer2020": {
        "name": "adapter",
        "reduction": 16,
        "bias": True,
        "activation": "relu",
        "placement": "ffn",
        "norms": False,
        "init": "zero",
    },
    # Yu et al. 2022, arXiv 2110.06500
    "yu2022-adapter": {
        "name": "adapter",
        "bottleneck": 48,
        "bias": False,
        "activation": "gelu",
        "placement": "both",
        "before_dropout": True,
        "norms": False,
        "init": "zero",
    },
    "yu2022-lora": {"name": "lora", "rank": 16, "targets": ["all-linear"], "fuse_qkv": True, "init": "xavier"},
    "yu2022-lora-gpt2": {"name": "lora", "rank": 4, "alpha": 32, "targets": ["c_attn:q", "c_attn:v"]},
    "yu2022-compacter": {
        "name": "compacter",
        "n": 8,
        "bottleneck": 96,
        "shared_rule": False,
        "bias": False,
        "activation": "gelu",
        "placement": "both",
        "norms": False,
        # As published, and not the identity; "private" starts the last factor of each adapter at zero instead, and
        # the rules at standard deviation 0.5, so that the model starts unchanged.
        "init": "yu",
    },
    "yu2022-full": {"name": "full", "targets": ["all-linear"], "biases": False},
    # Karimi Mahabadi et al. 2021, arXiv 2106.04647, for T5. The first can't be called as the method itself is: the
    # method without a preset could then not be written down.
    "mahabadi2021": _COMPACTER,
    "compacter++": {**_COMPACTER, "placement": "ffn"},
    # Chen et al. 2021, arXiv 2111.00160; A starts with standard deviation 0.02
    "chen2021-dsee": {"name": "dsee", "rank": 16, "alpha": 32.0, "nonzeros": 64},
    # Lester et al. 2021, arXiv 2104.08691
    "lester2021-prompt": {"name": "prompt", "length": 100, "init": "vocabulary"},
    # Asai et al. 2022, arXiv 2205.11961; its six source prompts are a file: sources = "prompts.safetensors"
    "attempt2022": {"name": "attempt", "count": 6, "length": 100, "width": 100, "train_norm": False},
    # He et al. 2022, arXiv 2210.04284, its RoBERTa settings; density is the share kept. The masks that the paper likes
    # best are SNIP's, which look at records: mask = "snip" with [public] or mask_steps
    "he2022-sparse-adapter": _SPARSE_ADAPTER,
    "he2022-large-sparse": {**_SPARSE_ADAPTER, "bottleneck": 4 * 64, "density": 0.6 / 4},
    # Fang et al. 2022, arXiv 2208.14111; its other mode trains the biases too: [beside] name = "bitfit"
    "fang2022-raft": {"name": "raft", "numerator": 5, "denominator": 4, "version": "safe"},
    # Sung et al. 2022, arXiv 2206.06522. On T5-base it keeps blocks [1, 2, 3, 5, 6, 7, 9, 10, 11] of both stacks, on
    # T5-large every other: set keep. It chooses rows by Fisher information: init = "fisher", with [public]
    "sung2022-lst": {"name": "lst", "reduction": 8, "init": "prune", "start": "published"},
}
