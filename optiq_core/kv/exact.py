"""Tokens that a compressed cache also keeps as they came: the first ones of a row and the last ones.

Most of what compression costs comes from keys: attention looks at the first tokens and at the last ones more than at
all others, so a small error in their scores is seen. A window of recent tokens in float is what KIVI keeps (Liu et al.,
arXiv:2402.02750), first tokens what attention sinks ask for (Xiao et al., arXiv:2309.17453).

They lie in one array [B, H, FIRST + R, D]: a row's first tokens, then its last R. Of float32 models they are float16.
A query sees as they came the tokens at most ``window`` positions before it, whatever the chunks that a prompt comes in.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

FIRST = 4
_LARGEST = 65504.0


def extend(exact: mx.array | None, new: mx.array, begin: int, padding: mx.array | None, *, filling: bool) -> mx.array:
    """Append tokens, and keep those that are a row's first.

    Args:
        exact: [B, H, FIRST + R, D]; None before the first token.
        new: [B, H, L, D].
        begin: position of the first new token.
        padding: [B] positions before each row's first token; None for rows without.
        filling: whether a row may have fewer than FIRST tokens yet.

    Returns:
        [B, H, FIRST + R + L, D].
    """
    if new.dtype == mx.float32:
        new = mx.clip(new, -_LARGEST, _LARGEST).astype(mx.float16)
    if exact is None:
        exact = mx.zeros((*new.shape[:2], FIRST, new.shape[3]), new.dtype)
    if not filling:
        return mx.concatenate([exact, new], axis=2)
    starts = mx.zeros((1,), mx.int32) if padding is None else padding
    at = starts[:, None] + mx.arange(FIRST) - begin
    here = ((at >= 0) & (at < new.shape[2]))[:, None, :, None]
    index = mx.broadcast_to(mx.clip(at, 0, new.shape[2] - 1)[:, None, :, None], (*new.shape[:2], FIRST, 1))
    first = mx.where(here, mx.take_along_axis(new, index, axis=2), exact[:, :, :FIRST])
    return mx.concatenate([first, exact[:, :, FIRST:], new], axis=2)


def keep_recent(exact: mx.array, n: int) -> mx.array:
    """Return the first tokens and the last n of the recent ones."""
    spare = exact.shape[2] - FIRST - n
    return mx.concatenate([exact[:, :, :FIRST], exact[:, :, FIRST + spare :]], axis=2) if spare > 0 else exact


def pad_recent(exact: mx.array, n: int) -> mx.array:
    """Put zeros before the recent tokens, so that there are n of them: padding that no query sees."""
    missing = n - (exact.shape[2] - FIRST)
    if missing <= 0:
        return exact
    blank = mx.zeros((*exact.shape[:2], missing, exact.shape[3]), exact.dtype)
    return mx.concatenate([exact[:, :, :FIRST], blank, exact[:, :, FIRST:]], axis=2)


def roll_recent(exact: mx.array, shifts: mx.array, n: int) -> mx.array:
    """Move each row's recent tokens to the right by its shift, over what is there, and keep n of them."""
    recent = exact[:, :, FIRST:]
    at = mx.arange(recent.shape[2] - n, recent.shape[2]) - shifts[:, None]
    index = mx.broadcast_to(mx.maximum(at, 0)[:, None, :, None], (*recent.shape[:2], n, 1))
    return mx.concatenate([exact[:, :, :FIRST], mx.take_along_axis(recent, index, axis=2)], axis=2)


def trim_recent(
    exact: mx.array,
    n: int,
    end: int,
    window: int,
    decoded: Callable[[int, int, mx.Dtype], mx.array],
    *,
    padding: mx.array | None,
) -> mx.array:
    """Take n tokens off the end. What then lies in the window and was kept in codes only is decoded from them.

    Args:
        exact: [B, H, FIRST + R, D].
        n: tokens to take off.
        end: tokens that are left, padding included.
        window: recent tokens to have.
        decoded: returns [B, H, T, D] of positions from and to, in a dtype.
        padding: [B] positions before each row's first token; None for rows without.
    """
    first, recent = exact[:, :, :FIRST], exact[:, :, FIRST:]
    have = max(recent.shape[2] - n, 0)
    wanted = max(min(end, window), have)
    recent = recent[:, :, :have]
    if have < wanted:
        recent = mx.concatenate([decoded(end - wanted, end - have, exact.dtype), recent], axis=2)
    # First tokens may be recent ones now, and were kept as they came.
    starts = mx.zeros((1,), mx.int32) if padding is None else padding
    at = mx.arange(end - wanted, end) - starts[:, None]
    index = mx.broadcast_to(mx.clip(at, 0, FIRST - 1)[:, None, :, None], (*recent.shape[:3], 1))
    known = ((at >= 0) & (at < FIRST))[:, None, :, None]
    return mx.concatenate([first, mx.where(known, mx.take_along_axis(first, index, axis=2), recent)], axis=2)
