"""Merges from SentencePiece scores.

A SentencePiece BPE model stores no merges: it joins whichever neighbours make the piece with the highest score.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence


def merges_from_scores(
    tokens: Sequence[str], scores: Sequence[float], mergeable: Collection[int]
) -> list[tuple[str, str]]:
    """The merges that join neighbours in the order of the joined piece's score, best first.

    Args:
        mergeable: ids that merging may make or use; control and byte tokens are not among them.
    """
    pieces = {tokens[i]: i for i in mergeable}
    best_first = sorted(mergeable, key=lambda i: (-scores[i], i))
    return [pair for i in best_first for pair in _splits(tokens[i], pieces)]


def _splits(piece: str, pieces: dict[str, int]) -> list[tuple[str, str]]:
    cuts = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
    return [(left, right) for left, right in cuts if left in pieces and right in pieces]
