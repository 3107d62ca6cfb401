"""What is said of a network that is refused."""

from pathlib import Path

import pytest

import twotower


def refused(network: str | Path) -> str:
    """The one line by which `load_network` refuses a name, a folder or a file."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011  each caller looks at the sentence
        twotower.load_network(network, device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)
