"""KL divergence between a model's next-token distributions and a changed model's."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

# Positions at a time: what fits into a CPU's cache takes half the time, and a GPU has enough to do.
_POSITIONS = 64


@dataclass(frozen=True)
class Reference:
    """Output of the unchanged model.

    Attributes:
        logits: [positions, vocabulary], float32.
        probabilities: their softmax.
    """

    logits: mx.array
    probabilities: mx.array

    @classmethod
    def of(cls, logits: mx.array) -> Reference:
        """Keep logits [..., vocabulary] for comparison; evaluated."""
        flat = logits.reshape(-1, logits.shape[-1]).astype(mx.float32)
        reference = cls(flat, mx.softmax(flat, axis=-1, precise=True))
        mx.eval(reference.logits, reference.probabilities)
        return reference

    def kl(self, logits: mx.array) -> mx.array:
        """KL(reference || changed) at every position, in nats.

        With ``d`` the difference of the logits and ``m`` its mean under the reference, the divergence is
        ``log(sum p exp(d - m))``, formed from ``expm1`` so that small values do not drown in rounding: a KL of 5e-5 in
        float32 agrees with float64 to six digits.

        Args:
            logits: [..., vocabulary] of the changed model.

        Returns:
            [positions], float32.
        """
        changed = logits.reshape(-1, logits.shape[-1]).astype(mx.float32)
        parts = []
        for begin in range(0, changed.shape[0], _POSITIONS):
            rows = slice(begin, begin + _POSITIONS)
            weights = self.probabilities[rows, None, :]
            difference = changed[rows] - self.logits[rows]
            mean = (weights @ difference[:, :, None]).reshape(-1, 1)
            excess = (weights @ mx.expm1(difference - mean)[:, :, None]).reshape(-1)
            part = mx.log1p(excess)
            mx.eval(part)
            parts.append(part)
        return mx.concatenate(parts)
