"""One folder of the campaign of broken images: every kind once, through both ways of preparing."""

import pytest

from campaigns import FAILURES, images


@pytest.mark.slow
@pytest.mark.timeout(480)  # two commands and everything that was accepted, fed three times
def test_every_kind_of_broken_image_is_accepted_or_left_out_in_words() -> None:
    said: list[str] = []
    counts = images.run(len(images.KINDS), 5, said.append)
    assert counts[FAILURES] == 0, "\n".join(said)
    assert counts["mutated files"] == len(images.KINDS) >= 56
    for way in ("first use", "prepare_data"):
        assert counts[f"{way}: accepted"] > 20
        assert counts[f"{way}: left out"] > 20
