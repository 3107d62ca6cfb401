"""Downloads the archives of a source, with their checksums."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from twotower.config import SourceConfig

DOWNLOADS = Path("datasets", "downloads")  # git ignores datasets/


def download(config: SourceConfig, say: Callable[[str], None]) -> SourceConfig:
    """Fetches the archives that are not there yet, and compares their checksums.

    Args:
        say: shows a person a line.

    Returns: the settings with the folder of the archives as `root`: the given one, or else
        datasets/downloads/<name>.

    Raises: ValueError for a source without downloads, a server that cannot be reached or another checksum; OSError.
    """
    import pooch  # imported here, because only a download needs it
    import requests

    if config.root is None and not config.downloads:
        by_hand = f", only by hand from {config.page}" if config.page else ""
        raise ValueError(f"source={config.name} cannot be downloaded{by_hand}; give source.root=DIR.")
    root = DOWNLOADS / config.name if config.root is None else Path(config.root)
    for archive in config.downloads:
        if (root / archive.file).exists():
            continue
        say(f"downloading {archive.url}")
        try:
            pooch.retrieve(archive.url, archive.checksum, archive.file, root, progressbar=True)
        except ValueError as error:
            raise ValueError(f"{archive.url} did not arrive as it should be: {error}") from error
        except requests.RequestException as error:
            raise ValueError(
                f"{archive.url} could not be reached ({error}); get {archive.file} elsewhere and put it into {root}."
            ) from error
    return replace(config, root=str(root))
