"""BLEU (Papineni et al. 2002) and TER (Snover et al. 2006), by sacrebleu, over all texts at once, in per cent.

Both ignore case. BLEU: tokens of mteval-v13a, which the E2E challenge's script follows too, the length of the closest
reference, and sacrebleu's smoothing of orders without any match, as mteval has it. TER: normalised as tercom does it,
the reference with the fewest edits, over the references' mean length; DART's published figures are the mean over
texts, by another program, as a fraction.
"""

from __future__ import annotations

from collections.abc import Sequence

Streams = list[list[str | None]]


def bleu(written: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """0 to 100, the more the better."""
    from sacrebleu.metrics.bleu import BLEU

    # Else it logs a warning about texts that look tokenised, as E2E's and DART's own do.
    return float(BLEU(lowercase=True, force=True).corpus_score(written, _streams(references)).score)


def ter(written: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Edits per 100 tokens of a reference: 0 for a perfect match, the less the better."""
    from sacrebleu.metrics.ter import TER

    return float(TER(normalized=True, case_sensitive=False).corpus_score(written, _streams(references)).score)


def _streams(references: Sequence[Sequence[str]]) -> Streams:
    """The i-th references of all sources together, as sacrebleu takes them; None where a source has fewer."""
    most = max(len(group) for group in references)
    return [[group[i] if i < len(group) else None for group in references] for i in range(most)]
