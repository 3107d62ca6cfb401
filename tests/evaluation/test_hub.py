"""Networks from Hugging Face's hub, fetched by its own library from a hub on this machine."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import twotower
from helpers.hub_server import Hub, import_anew, keep_to_this_machine, serve_hub
from helpers.paths import ROOT
from helpers.refusals import refused
from twotower.evaluation.trained import TrainedNetwork

pytestmark = pytest.mark.usefixtures("one_thread")

LOCAL = ROOT / "results" / "cifar_80sec"
FETCHED = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture(scope="module")
def local() -> dict[str, bytes]:
    """What the hub's folder holds: more files than a network needs."""
    return {name: (LOCAL / name).read_bytes() for name in [*FETCHED, "curves.csv"]}


@pytest.fixture
def strangers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Machines other than this one that were asked for: the test fails if there are any when it ends."""
    asked = keep_to_this_machine(monkeypatch)
    yield asked
    assert not asked


@pytest.fixture
def hub(
    local: dict[str, bytes], strangers: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Hub]:
    """With cifar_80sec as owner/name, and a cache of its own."""
    with serve_hub() as hub:
        hub.commit(local)
        import_anew(monkeypatch, tmp_path, hub.url)
        yield hub


def list_tensors(network: TrainedNetwork) -> list[Tensor]:
    return [tensor for tower in network.towers for tensor in tower.state_dict().values()]


def flip_last_byte(body: bytes) -> bytes:
    return body[:-1] + bytes([body[-1] ^ 1])


def test_a_network_is_fetched_once_and_is_the_one_that_lies_there(hub: Hub, tmp_path: Path) -> None:
    fetched = twotower.load_network("hf:owner/name", device="cpu")
    wanted = twotower.load_network(LOCAL, device="cpu")
    assert (fetched.title, fetched.classes) == ("hf:owner/name", wanted.classes)
    pairs = list(zip(list_tensors(fetched), list_tensors(wanted), strict=True))
    assert pairs
    assert all(torch.equal(a, b) for a, b in pairs)
    (snapshot,) = tmp_path.glob("**/snapshots/*")
    assert (snapshot.name, sorted(path.name for path in snapshot.iterdir())) == (hub.names["main"], FETCHED)
    assert [path for path in hub.asked if path.startswith("/stored/")], "the weights came from somewhere else"
    assert not [path for path in hub.asked if "curves" in path]

    hub.asked.clear()
    twotower.load_network("hf:owner/name", device="cpu")
    assert not [path for path in hub.asked if path.startswith("/stored/")]


def test_a_revision_is_a_name_or_a_commit_of_its_own(hub: Hub, local: dict[str, bytes]) -> None:
    """And the one that is asked for is fetched: the newest of them is no network."""
    good = hub.names["main"]
    hub.commit({"README.md": local["README.md"]})
    hub.commit(local, "v1")
    for revision in ("v1", good):
        assert twotower.load_network(f"hf:owner/name@{revision}", device="cpu").title == f"hf:owner/name@{revision}"
    assert refused("hf:owner/name").startswith("hf:owner/name has no model.safetensors: it is no folder that ")
    for unknown in ("v2", "0" * 40):
        sentence = refused(f"hf:owner/name@{unknown}")
        assert sentence.startswith(f"hf:owner/name@{unknown} cannot be fetched (RevisionNotFoundError: 404 ")
        assert sentence.endswith("); check the name, or copy the folder here and give its path.")


def test_a_name_that_the_hub_does_not_know_is_refused(hub: Hub) -> None:
    sentence = refused("hf:owner/none")
    assert sentence.startswith("hf:owner/none cannot be fetched (RepositoryNotFoundError: 404 Client Error.")
    assert sentence.endswith("); check the name, or copy the folder here and give its path.")


def test_weights_that_were_altered_on_the_hub_are_refused(hub: Hub, local: dict[str, bytes]) -> None:
    """And so is a config.json of another network."""
    hub.commit(local | {"model.safetensors": flip_last_byte(local["model.safetensors"])})
    assert "the SHA-256 of its tensors is not the one stored in it" in refused("hf:owner/name")
    config = json.loads(local["config.json"]) | {"sha256": "0" * 64}
    hub.commit(local | {"config.json": json.dumps(config).encode()}, "foreign")
    assert "config.json does not belong to model.safetensors" in refused("hf:owner/name@foreign")


def test_weights_that_arrive_altered_are_refused(hub: Hub, local: dict[str, bytes]) -> None:
    """Which the library does not notice."""
    hub.stored = dict.fromkeys(hub.stored, flip_last_byte(local["model.safetensors"]))
    assert "the SHA-256 of its tensors is not the one stored in it" in refused("hf:owner/name")


def test_weights_that_arrive_cut_short_are_refused(hub: Hub, local: dict[str, bytes]) -> None:
    hub.stored = dict.fromkeys(hub.stored, local["model.safetensors"][:-1])
    assert refused("hf:owner/name").startswith("hf:owner/name cannot be fetched (OSError: Consistency check failed")


def test_a_test_that_asks_the_real_hub_fails(
    strangers: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nobody is reached, and who was asked for is known, by which these tests fail. The reader gets one sentence."""
    import_anew(monkeypatch, tmp_path, endpoint=None)
    assert refused("hf:owner/name").startswith("hf:owner/name cannot be fetched (LocalEntryNotFoundError: ")
    assert set(strangers) == {"huggingface.co"}
    strangers.clear()


def test_without_the_library_one_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert refused("hf:o/name") == (
        "hf:o/name is on Hugging Face's hub, and huggingface_hub is not installed: pip install -e '.[huggingface]'"
    )
