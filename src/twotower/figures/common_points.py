"""The points that several runs have in common, which are those that are averaged."""

from collections.abc import Sequence
from typing import TypeVar

Key = TypeVar("Key")
Point = TypeVar("Point")


def gather_common(courses: Sequence[dict[Key, Point]]) -> dict[Key, list[Point]]:
    """For each key that all courses have, in the order of the first: the point of each course.

    Args:
        courses: epoch or step -> point, a course for each run; at least one.
    """
    common = [key for key in courses[0] if all(key in course for course in courses)]
    return {key: [course[key] for course in courses] for key in common}
