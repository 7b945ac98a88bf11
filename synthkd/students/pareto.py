"""Fronts of two aims: agreement, which shall be large, and a cost, which shall be small."""

from collections.abc import Sequence

Point = tuple[float, float]  # agreement, cost


def dominates(one: Point, other: Point) -> bool:
    """Whether a point is as good as another in both aims, and better in one.

    >>> dominates((0.9, 1.0), (0.8, 1.0)), dominates((0.9, 2.0), (0.8, 1.0))
    (True, False)
    """
    return one[0] >= other[0] and one[1] <= other[1] and one != other


def front(points: Sequence[Point]) -> list[int]:
    """The places of the points that no other dominates, the cheapest first; of equal ones the
    first.

    >>> front([(0.9, 2.0), (0.8, 1.0), (0.7, 1.5), (0.9, 2.0)])
    [1, 0]
    """
    order = sorted(range(len(points)), key=lambda k: (points[k][1], -points[k][0], k))
    found, best = [], float("-inf")
    for place in order:
        if points[place][0] > best:
            found.append(place)
            best = points[place][0]
    return found


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """The area that points dominate, up to a reference that is worse than they are: agreement ·
    cost. What is no better than the reference counts nothing.

    >>> hypervolume([(0.5, 1.0), (1.0, 2.0)], (0.0, 4.0))
    2.5
    >>> hypervolume([(0.5, 5.0)], (0.0, 4.0))
    0.0
    """
    area, height = 0.0, reference[0]
    for place in front(points):
        agreement, cost = points[place]
        if cost < reference[1] and agreement > height:
            area += (agreement - height) * (reference[1] - cost)
            height = agreement
    return area


def chosen(
    points: Sequence[Point], limit: float | None = None, *, give: float = 0.01
) -> int | None:
    """The place of the point to take: within the `limit` of the cost the cheapest that agrees as
    often as the best but for `give`; None where none is within.

    >>> chosen([(0.9, 9.0), (0.895, 2.0), (0.8, 1.0)]), chosen([(0.9, 9.0), (0.8, 1.0)], 5.0)
    (1, 1)
    """
    fitting = [k for k, (_, cost) in enumerate(points) if limit is None or cost <= limit]
    if not fitting:
        return None
    best = max(points[k][0] for k in fitting)
    near = [k for k in fitting if points[k][0] >= best - (0.0 if limit else give)]
    return min(near, key=lambda k: points[k][1])
