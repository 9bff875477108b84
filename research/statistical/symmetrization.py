"""Symmetrisation: one set of links from the alignments of both directions.

Och & Ney (2003), section 4; Koehn, Och & Marcu (2003) for the growing heuristics, in the order in which
Moses's ``symal`` adds points, which decides between neighbours that exclude each other. A link is (i, j).
"""

from __future__ import annotations

import bisect
from collections.abc import Callable

Link = tuple[int, int]
Links = frozenset[Link] | set[Link]

_NEIGHBOURS = ((-1, 0), (0, -1), (1, 0), (0, 1))
_DIAGONAL = (*_NEIGHBOURS, (-1, -1), (-1, 1), (1, -1), (1, 1))


def intersection(forward: Links, backward: Links) -> set[Link]:
    """Links of both directions."""
    return set(forward & backward)


def union(forward: Links, backward: Links) -> set[Link]:
    """Links of either direction."""
    return set(forward | backward)


def grow_diag(forward: Links, backward: Links) -> set[Link]:
    """The intersection, grown: neighbours of a link, diagonal ones too, that are in the union and align a
    word which has no link yet, until there are none."""
    links, candidates = set(forward & backward), set(forward ^ backward)
    sources, targets = {i for i, _ in links}, {j for _, j in links}
    grown = bool(candidates)
    while grown:
        grown = False
        # A point added behind the scan waits for the next one; one ahead of it is visited in this one.
        queue = sorted(links)
        at = 0
        while at < len(queue):
            i, j = queue[at]
            at += 1
            for down, right in _DIAGONAL:
                new = (i + down, j + right)
                if new in candidates and not (new[0] in sources and new[1] in targets):
                    candidates.discard(new)
                    links.add(new)
                    sources.add(new[0])
                    targets.add(new[1])
                    grown = True
                    if new > (i, j):
                        bisect.insort(queue, new, lo=at)
    return links


def grow_diag_final(forward: Links, backward: Links) -> set[Link]:
    """grow-diag, then every link of either direction that aligns a word which has no link yet."""
    return _final(forward, backward, any_free=True)


def grow_diag_final_and(forward: Links, backward: Links) -> set[Link]:
    """grow-diag, then every link of either direction between two words that have no link yet."""
    return _final(forward, backward, any_free=False)


def _final(forward: Links, backward: Links, *, any_free: bool) -> set[Link]:
    links = grow_diag(forward, backward)
    sources, targets = {i for i, _ in links}, {j for _, j in links}
    for direction in (forward, backward):
        for i, j in sorted(direction):
            free = (i not in sources) + (j not in targets)
            if free == 2 or (any_free and free):
                links.add((i, j))
                sources.add(i)
                targets.add(j)
    return links


SYMMETRIZATIONS: dict[str, Callable[[Links, Links], set[Link]]] = {
    "intersection": intersection,
    "union": union,
    "grow-diag": grow_diag,
    "grow-diag-final": grow_diag_final,
    "grow-diag-final-and": grow_diag_final_and,
    "forward": lambda forward, backward: set(forward),
    "backward": lambda forward, backward: set(backward),
}
"""Ways of combining the links of both directions, by name."""
