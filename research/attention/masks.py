"""Masks as data: small descriptions of which token may attend to which, composed with ``&``, ``|``, ``~``.

A mask is static and hashable; the tokens it is asked about are arrays. ``mask(q, kv)`` gives the dense
boolean, its definition. ``mask.bounds(q, kv)`` says of whole blocks of tokens which the mask leaves empty and
which it admits throughout, so that an engine computes only what it must. Both work on NumPy arrays too, at
trace time, where positions are known.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped

if TYPE_CHECKING:  # static checkers would want each use told apart
    AnyArray: TypeAlias = Any
else:
    AnyArray = Array | np.ndarray
ABSENT = jnp.iinfo(jnp.int32).max
"""Position of a cache slot that holds no token: after every query, so that no causal mask admits it."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
    """What a mask may know of a sequence: where each token stands and which document it belongs to."""

    positions: Int[AnyArray, "#batch length"]
    """Position of each token in its document."""
    segments: Int[AnyArray, "#batch length"] | None = None
    """Document of each token, from 1; 0 is padding; None: one document and no padding."""
    in_order: bool = dataclasses.field(default=False, metadata={"static": True})
    """A promise: documents stand one after another, the positions of each counting 0, 1, 2 … without a gap,
    and padding comes last. Two tokens of one document are then as far apart as their indices."""

    @classmethod
    def arange(cls, length: int) -> Tokens:
        """Returns the tokens of one document of ``length`` tokens, for every row of a batch."""
        return cls(jnp.arange(length, dtype=jnp.int32)[None], in_order=True)

    @classmethod
    def of_lengths(cls, lengths: Int[Array, " batch"], length: int) -> Tokens:
        """Returns right-padded rows, the first ``lengths[b]`` tokens of row b being real."""
        positions = jnp.arange(length, dtype=jnp.int32)[None]
        return cls(positions, (positions < lengths[:, None]).astype(jnp.int32), in_order=True)

    @property
    def length(self) -> int:
        """Number of tokens in a row."""
        return self.positions.shape[1]

    @property
    def real(self) -> Bool[AnyArray, "#batch length"]:
        """Whether there is a token, and no padding or empty slot."""
        real = self.positions != ABSENT
        return real if self.segments is None else real & (self.segments != 0)


def positions_of(tokens: Tokens | None, length: int) -> Int[Array, "#batch length"]:
    """Returns the positions of tokens, as JAX's array; None: 0, 1, 2 …"""
    return jnp.asarray((Tokens.arange(length) if tokens is None else tokens).positions)


@dataclasses.dataclass(frozen=True)
class Documents:
    """What is known of the segments of whole blocks of tokens."""

    first: Int[AnyArray, "#batch blocks"]
    """Least segment of a real token."""
    last: Int[AnyArray, "#batch blocks"]
    """Greatest segment, 0 where all is padding."""
    padded: Bool[AnyArray, "#batch blocks"]
    """Whether any token is padding."""


@dataclasses.dataclass(frozen=True)
class Span:
    """What is known of whole blocks of tokens: bounds over the real tokens of each."""

    first: Int[AnyArray, "#batch blocks"]
    """Least position."""
    last: Int[AnyArray, "#batch blocks"]
    """Greatest position."""
    documents: Documents | None = None
    """None: one document and no padding."""


Bounds: TypeAlias = tuple[
    Bool[AnyArray, "#batch #q_blocks #kv_blocks"], Bool[AnyArray, "#batch #q_blocks #kv_blocks"]
]
"""Of each pair of blocks: may any pair of tokens be admitted, and must all be?"""
_YES, _NO = np.ones((1, 1, 1), bool), np.zeros((1, 1, 1), bool)


def _query(x: Shaped[AnyArray, "#batch length"]) -> Shaped[AnyArray, "#batch length 1"]:
    return x[:, :, None]


def _key(x: Shaped[AnyArray, "#batch length"]) -> Shaped[AnyArray, "#batch 1 length"]:
    return x[:, None, :]


@dataclasses.dataclass(frozen=True)
class Mask:
    """Which query token may attend to which key token; subclasses say which."""

    relative: ClassVar[bool] = False
    """Whether nothing but segments and the distance between the two tokens counts."""
    documents: ClassVar[bool] = False
    """Whether segments count."""
    within_documents: ClassVar[bool] = False
    """Whether no pair of different documents is admitted."""

    def __call__(self, q: Tokens, kv: Tokens) -> Bool[AnyArray, "#batch q_len kv_len"]:
        """Returns True where the query may attend to the key."""
        raise NotImplementedError(f"{type(self).__name__} does not say which tokens it admits")

    def bounds(self, q: Span, kv: Span) -> Bounds:
        """Returns what holds for every assignment of tokens that fits the spans; here: nothing is known."""
        del q, kv
        return _YES, _NO

    def __and__(self, other: Mask) -> Mask:
        return And(self, other)

    def __or__(self, other: Mask) -> Mask:
        return Or(self, other)

    def __invert__(self) -> Mask:
        return Not(self)


@dataclasses.dataclass(frozen=True)
class Everything(Mask):
    """Every token attends to every token."""

    relative: ClassVar[bool] = True

    def __call__(self, q: Tokens, kv: Tokens) -> Bool[AnyArray, "#batch q_len kv_len"]:
        """Returns True everywhere."""
        return np.ones((1, q.length, kv.length), bool)

    def bounds(self, q: Span, kv: Span) -> Bounds:
        """Returns that all is admitted."""
        del q, kv
        return _YES, _YES


@dataclasses.dataclass(frozen=True)
class Causal(Mask):
    """A token attends to those at its own position and before (compared by position, never by index)."""

    relative: ClassVar[bool] = True

    def __call__(self, q: Tokens, kv: Tokens) -> Bool[AnyArray, "#batch q_len kv_len"]:
        """Returns True where the key is not after the query."""
        return _key(kv.positions) <= _query(q.positions)

    def bounds(self, q: Span, kv: Span) -> Bounds:
        """Returns bounds from the first and last positions."""
        return _key(kv.first) <= _query(q.last), _key(kv.last) <= _query(q.first)


@dataclasses.dataclass(frozen=True)
class Window(Mask):
    """A token attends to ``before`` positions before its own, itself, and ``after`` positions after.

    A causal sliding window of w tokens, the token itself included, is ``Window(w - 1, 0)``.
    """

    before: int
    after: int = 0
    relative: ClassVar[bool] = True

    def __call__(self, q: Tokens, kv: Tokens) -> Bool[AnyArray, "#batch q_len kv_len"]:
        """Returns True where -before <= kv position - q position <= after."""
        query, key = _query(q.positions), _key(kv.positions)
        # Compared as sums with the query's position: the position of an absent slot would overflow.
        return (key >= query - self.before) & (key <= query + self.after)

    def bounds(self, q: Span, kv: Span) -> Bounds:
        """Returns bounds from the least and greatest distances."""
        may = (_key(kv.last) >= _query(q.first) - self.before) & (
            _key(kv.first) <= _query(q.last) + self.after
        )
        must = (_key(kv.first) >= _query(q.last) - self.before) & (
            _key(kv.last) <= _query(q.first) + self.after
        )
        return may, must


@dataclasses.dataclass(frozen=True)
class SameSegment(Mask):
    """A token attends within its document; padding (segment 0) attends to nothing and is attended by none."""

    relative: ClassVar[bool] = True
    documents: ClassVar[bool] = True
    within_documents: ClassVar[bool] = True

    def __call__(self, q: Tokens, kv: Tokens) -> Bool[AnyArray, "#batch q_len kv_len"]:
        """Returns True where both tokens are real and of one document.

        Raises:
          ValueError: exactly one side has segments.
        """
        if (q.segments is None) != (kv.segments is None):
            raise ValueError("SameSegment needs segments on both sides or on neither")
        if q.segments is None or kv.segments is None:
            return Everything()(q, kv)
        return (_query(q.segments) == _key(kv.segments)) & (_key(kv.segments) != 0)

    def bounds(self, q: Span, kv: Span) -> Bounds:
        """Returns bounds from the least and greatest documents."""
        if q.documents is None or kv.documents is None:
            return _YES, _YES
        ours, theirs = q.documents, kv.documents
        may = (_query(ours.first) <= _key(theirs.last)) & (_key(theirs.first) <= _query(ours.last))
        must = (_query(ours.first) == _key(theirs.last)) & (_key(theirs.first) == _query(ours.last))
        return may, must & ~(_query(ours.padded) | _key(theirs.padded))


@dataclasses.dataclass(frozen=True)
class Present(Mask):
    """Real tokens attend to real tokens, whatever their document; padding (segment 0) is left out."""

    relative: ClassVar[bool] = True
    documents: ClassVar[bool] = True

    def __call__(self, q: Tokens, kv: Tokens) -> Bool[AnyArray, "#batch q_len kv_len"]:
        """Returns True where neither token is padding."""
        allowed = Everything()(q, kv)
        if q.segments is not None:
            allowed = allowed & _query(q.segments != 0)
        if kv.segments is not None:
            allowed = allowed & _key(kv.segments != 0)
        return allowed

    def bounds(self, q: Span, kv: Span) -> Bounds:
        """Returns whether blocks hold real tokens, and only such."""
        bounds: Bounds = (_YES, _YES)
        for span, placed in ((q, _query), (kv, _key)):
            if (found := span.documents) is not None:
                bounds = bounds[0] & placed(found.last != 0), bounds[1] & ~placed(found.padded)
        return bounds


@dataclasses.dataclass(frozen=True)
class _Pair(Mask):
    """Two masks."""

    left: Mask
    right: Mask

    @property
    def relative(self) -> bool:  # type: ignore[override]
        """Whether both are."""
        return self.left.relative and self.right.relative

    @property
    def documents(self) -> bool:  # type: ignore[override]
        """Whether they count in either."""
        return self.left.documents or self.right.documents


@dataclasses.dataclass(frozen=True)
class And(_Pair):
    """Both masks admit."""

    @property
    def within_documents(self) -> bool:  # type: ignore[override]
        """Whether either is."""
        return self.left.within_documents or self.right.within_documents

    def __call__(self, q: Tokens, kv: Tokens) -> Bool[AnyArray, "#batch q_len kv_len"]:
        """Returns the conjunction."""
        return self.left(q, kv) & self.right(q, kv)

    def bounds(self, q: Span, kv: Span) -> Bounds:
        """Returns both, one by one."""
        (may, must), (also_may, also_must) = self.left.bounds(q, kv), self.right.bounds(q, kv)
        return may & also_may, must & also_must


@dataclasses.dataclass(frozen=True)
class Or(_Pair):
    """Either mask admits."""

    @property
    def within_documents(self) -> bool:  # type: ignore[override]
        """Whether both are."""
        return self.left.within_documents and self.right.within_documents

    def __call__(self, q: Tokens, kv: Tokens) -> Bool[AnyArray, "#batch q_len kv_len"]:
        """Returns the disjunction."""
        return self.left(q, kv) | self.right(q, kv)

    def bounds(self, q: Span, kv: Span) -> Bounds:
        """Returns either, one by one."""
        (may, must), (also_may, also_must) = self.left.bounds(q, kv), self.right.bounds(q, kv)
        return may | also_may, must | also_must


@dataclasses.dataclass(frozen=True)
class Not(Mask):
    """The mask does not admit."""

    mask: Mask

    @property
    def relative(self) -> bool:  # type: ignore[override]
        """Whether the mask is."""
        return self.mask.relative

    @property
    def documents(self) -> bool:  # type: ignore[override]
        """Whether they count in the mask."""
        return self.mask.documents

    def __call__(self, q: Tokens, kv: Tokens) -> Bool[AnyArray, "#batch q_len kv_len"]:
        """Returns the complement."""
        return ~self.mask(q, kv)

    def bounds(self, q: Span, kv: Span) -> Bounds:
        """Returns the complements, exchanged."""
        may, must = self.mask.bounds(q, kv)
        return ~must, ~may


def conjuncts(mask: Mask) -> tuple[Mask, ...]:
    """Returns the masks of which all must admit, without those that admit everything."""
    if isinstance(mask, And):
        return (*conjuncts(mask.left), *conjuncts(mask.right))
    return () if mask == Everything() else (mask,)
