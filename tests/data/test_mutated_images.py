"""Two folders of the campaign of broken images: every kind once, through both ways of preparing."""

from itertools import pairwise

import pytest

from campaigns import FAILURES, images


@pytest.mark.slow
@pytest.mark.timeout(480)  # four commands and everything that was accepted, fed three times
def test_every_kind_of_broken_image_is_accepted_or_left_out_in_words() -> None:
    said: list[str] = []
    counts = images.run(len(images.KINDS), 5, said.append)
    assert counts[FAILURES] == 0, "\n".join(said)
    assert len(images.KINDS) >= 56
    assert counts["folders"] == 2
    for way in ("first use", "prepare_data"):
        assert counts[f"{way}: accepted"] > 20
        assert counts[f"{way}: left out"] > 20


def test_ten_thousand_images_are_in_three_hundred_folders() -> None:
    bounds = images.bounds_of_folders(10_000)
    sizes = [end - begin for begin, end in pairwise(bounds)]
    assert (bounds[0], bounds[-1], len(sizes), set(sizes)) == (0, 10_000, 300, {33, 34})
