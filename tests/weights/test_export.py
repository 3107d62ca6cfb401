"""Exported networks compute what the towers do, say what they are, and are refused once anything of them changes.

Measured deviations in float64 are below 1e-12; what a wrong rule gives is asserted next to them.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from helpers import oracle
from helpers.paths import ROOT
from helpers.towers import load_network
from twotower.config import (
    UNSCALED,
    Config,
    DataConfig,
    ExportConfig,
    InputConfig,
    LoggingConfig,
    MachineConfig,
    NetworkConfig,
    OptimConfig,
    ScheduleConfig,
)
from twotower.data.dataset import MEAN_IMAGE
from twotower.distributed.exchange import InProcessExchange
from twotower.model import plain
from twotower.model.tower import Tower, forward
from twotower.runs import checkpoint
from twotower.weights import read_weights as weights
from twotower.weights.export import export_run
from twotower.weights.merged import hash_tensors
from twotower.weights.origin import read_origin
from twotower.weights.untrained import untrained_layers
from twotower.weights.verify import known_images, verify

CLASSES = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay", "kite"]
NETWORKS = {
    "alexnet": {"width": 0.0625, "image_size": 100},  # 100 pixels: every pooling ends with a window that is cut
    "alexnet_2012": {"width": 0.0625, "image_size": 100},
    "no_exchange": {"width": 0.0625, "image_size": 100},
    "six_conv": {"width": 0.0625, "image_size": 100},
    "one_tower": {"width": 0.0625, "image_size": 100},
    "caffe_alexnet": {"width": 0.0625, "image_size": 99},
    "cifar_four_layer": {"width": 0.25, "towers": 2, "activation": "tanh"},
    "cifar_13pct": {"width": 0.25},
}


def trained(network: NetworkConfig) -> list[Tower]:
    """Towers whose weights are not as they were drawn, and whose biases matter."""
    towers = [Tower(network, len(CLASSES), index, seed=5) for index in range(network.towers)]
    generator = torch.Generator().manual_seed(2)
    for tower in towers:
        for name, p in tower.paper_named_parameters().items():
            fan_in = p[0].numel() if p.dim() > 1 else 1
            scale = 1.5 / fan_in**0.5 if "weight" in name else 0.3
            p.data = torch.randn(p.shape, generator=generator) * scale
    return [tower.eval() for tower in towers]


def merged_of(towers: list[Tower]) -> dict[str, Tensor]:
    return weights.merge([{n: p.detach() for n, p in tower.paper_named_parameters().items()} for tower in towers])


@torch.no_grad()
def plain_logits(network: NetworkConfig, tensors: dict[str, Tensor], images: Tensor) -> Tensor:
    mean = {"mean_image": torch.zeros(3, network.image_size, network.image_size)}
    return plain.Network(asdict(network), tensors | mean).double().eval()(images)


@pytest.mark.parametrize("name", NETWORKS)
def test_one_piece_is_both_towers(name: str) -> None:
    """In float64, so a half in the wrong place, a norm across the towers or a lost edge shows."""
    network = load_network(name, **NETWORKS[name])
    towers = trained(network)
    tensors = merged_of(towers)
    images = known_images(network.image_size).double()
    with torch.no_grad():
        logits = forward([tower.double() for tower in towers], images, InProcessExchange())
    assert oracle.deviation(plain_logits(network, tensors, images), logits) < 1e-10

    # What the tolerance must reject.
    if network.lrn is not None:
        other = replace(network, lrn=replace(network.lrn, alpha_over_n=not network.lrn.alpha_over_n))
        assert oracle.deviation(plain_logits(other, tensors, images), logits) > 1e-6
    if name.startswith("alexnet"):
        layers = {**network.layers, "conv1": replace(network.layers["conv1"], overhang=1, pad=1)}
        assert oracle.deviation(plain_logits(replace(network, layers=layers), tensors, images), logits) > 1e-6
        conv3 = tensors["conv3.weight"]
        halves = conv3.shape[1] // 2
        exchanged = tensors | {"conv3.weight": torch.cat([conv3[:, halves:], conv3[:, :halves]], dim=1)}
        assert oracle.deviation(plain_logits(network, exchanged, images), logits) > 1e-3


def test_plain_dropout_is_that_of_the_network() -> None:
    """In training a share of units is zero, and the others stay as they are (2012) or grow (the later rule)."""
    network = load_network("alexnet", **NETWORKS["alexnet"])
    tensors = merged_of(trained(network)) | {"mean_image": torch.zeros(3, 100, 100)}
    x = torch.ones(4, 1000)
    for scaling, kept in (("test", 1.0), ("training", 2.0)):
        one = plain.Network(asdict(replace(network, dropout_scaling=scaling)), tensors)
        y = one.train().fc6_dropout(x)
        assert set(y.unique().tolist()) == {0.0, kept}
        assert 0.4 < float((y > 0).float().mean()) < 0.6
        assert one.eval().fc6_dropout(x).unique().tolist() == [0.5 * kept]


def make_run(
    folder: Path,
    name: str = "alexnet_2012",
    top1_error: float | None = 40.0,
    initial: bool = False,
    std: Sequence[float] = UNSCALED,
) -> Path:
    """A run's folder with one checkpoint; its data are nowhere, and were divided by `std`."""
    network = load_network(name, **NETWORKS[name])
    run = folder / "run"
    run.mkdir(parents=True)
    np.save(run / MEAN_IMAGE, np.random.default_rng(0).uniform(0, 255, (256, 256, 3)).astype(np.float32))

    towers = trained(network)
    if initial:
        towers = [Tower(network, len(CLASSES), index, seed=5) for index in range(network.towers)]
    checkpoints = run / "checkpoints"
    for tower in towers:
        velocity = {n: torch.ones_like(p) for n, p in tower.paper_named_parameters().items()}
        checkpoint.save_tower(checkpoints, 120, tower, velocity)
    last = {} if top1_error is None else {"loss": 1.5, "top1_error": top1_error, "top5_error": 10.0}
    identity = {"seed": 5, "num_val": 600}
    progress = {"last": last}
    checkpoint.complete(
        checkpoints, checkpoint.Manifest(120, asdict(network), CLASSES, {}, {}, progress, identity, {}), keep=2
    )
    config = Config(
        network=network,
        data=DataConfig(kind="folder", root=str(folder / "nowhere")),
        input=InputConfig(crop_size=network.image_size, std=list(std)),
        optim=OptimConfig(),
        schedule=ScheduleConfig(rule="fixed", epochs=1),
        logging=LoggingConfig(),
        machine=MachineConfig(),
        name="test",
    )
    OmegaConf.save(OmegaConf.structured(config), run / "config.yaml")
    return run


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merged file of alexnet_2012; tests change copies of it."""
    folder = tmp_path_factory.mktemp("exported")
    return export_run(ExportConfig(run=str(make_run(folder)), output=str(folder)))[0]


def changed(path: Path, to: Path, tensors: dict[str, Tensor], **about: str) -> Path:
    """The file with other tensors; its metadata stay, apart from `about`."""
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    save_file(tensors, to, metadata=metadata | about)
    return to


def test_a_merged_file_says_what_it_is(exported: Path) -> None:
    found = verify(exported)
    assert exported.name == "alexnet_2012-step-00000120.safetensors"
    assert (found.network, found.classes, found.step) == (
        load_network("alexnet_2012", **NETWORKS["alexnet_2012"]),
        CLASSES,
        "120",
    )
    assert found.errors == {"loss": 1.5, "top1_error": 40.0, "top5_error": 10.0}
    assert found.deviation < 1e-5
    assert found.untrained == []
    tensors = load_file(exported)
    assert found.num_parameters == sum(p.numel() for tower in trained(found.network) for p in tower.parameters())
    assert set(tensors) == {f"{layer}.{part}" for layer in oracle.LAYERS for part in ("weight", "bias")} | {
        "mean_image",
        "whole_mean_image",
    }
    mean_image = np.load(exported.parent / "run" / MEAN_IMAGE)
    assert np.array_equal(tensors["whole_mean_image"].permute(1, 2, 0).numpy(), mean_image)
    assert np.array_equal(tensors["mean_image"].permute(1, 2, 0).numpy(), mean_image[78:178, 78:178])
    named = [{n: p.detach() for n, p in tower.paper_named_parameters().items()} for tower in trained(found.network)]
    assert all(torch.equal(tensors[name], true) for name, true in oracle.merge(*named).items())


def test_plain_loads_it_without_twotower(exported: Path) -> None:
    """The copy beside the file, where nothing of twotower can be imported."""
    code = (
        "import sys; sys.modules['twotower'] = None\n"
        "import torch, plain\n"
        f"network = plain.load({str(exported)!r})\n"
        "images = torch.full((2, 3, 100, 100), 128.0)\n"
        "print(network(images - network.mean_image).flatten().tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=exported.parent, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    tensors = load_file(exported)
    towers = trained(load_network("alexnet_2012", **NETWORKS["alexnet_2012"]))
    with torch.no_grad():
        logits = forward(towers, (128 - tensors["mean_image"]).expand(2, -1, -1, -1), InProcessExchange())
    assert oracle.deviation(torch.tensor(json.loads(done.stdout)).view(2, -1), logits) < 1e-5


def test_our_own_files_are_read_back(exported: Path) -> None:
    """The merged file with its mean, the run's folder without; another function of the same shapes is refused."""
    network = load_network("alexnet_2012", **NETWORKS["alexnet_2012"])
    true = merged_of(trained(network))
    for path, has_mean in ((exported, True), (exported.parent / "run", False)):
        towers, mean = weights.load_towers_from_file(path, network, len(CLASSES), torch.device("cpu"))
        assert (mean is not None) == has_mean
        found = merged_of(towers)
        assert all(torch.equal(found[name], true[name]) for name in true)
        with pytest.raises(
            ValueError, match=r"trained as network=alexnet_2012, and network=alexnet differs from it in"
        ):
            weights.load_towers_from_file(
                path, load_network("alexnet", **NETWORKS["alexnet"]), len(CLASSES), torch.device("cpu")
            )
        with pytest.raises(
            ValueError, match=r"network\.width=0\.0625 and 11 classes, and what is asked for is .* and 12 classes"
        ):
            weights.read_weights(path, network, 12)
    tensors = load_file(exported)
    del tensors["fc7.bias"]
    lost = changed(exported, exported.parent / "lost.safetensors", tensors, sha256=hash_tensors(tensors))
    said = r"with 11 classes: fc7\.bias is missing and should be \(256,\); no network of conf/network fits it\.$"
    with pytest.raises(ValueError, match=said):
        weights.read_weights(lost, network, len(CLASSES))
    learning = replace(network, name="other", bias_rate=1.0, exchange_precision="half")
    weights.load_towers_from_file(exported, learning, len(CLASSES), torch.device("cpu"))
    with pytest.raises(ValueError, match="does not exist"):
        verify(exported.parent / "nothing.safetensors")


def test_a_flipped_bit_is_found(exported: Path, tmp_path: Path) -> None:
    content = bytearray(exported.read_bytes())
    content[-4000] ^= 1
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="SHA-256"):
        verify(path)
    with pytest.raises(ValueError, match="SHA-256"):  # nor is it used
        weights.read_merged(path)
    path.write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"is damaged \(.*not fully covered.*\); export it again"):
        verify(path)


def test_a_renamed_tensor_is_found(exported: Path, tmp_path: Path) -> None:
    tensors = load_file(exported)
    tensors["conv2.weights"] = tensors.pop("conv2.weight")
    path = changed(exported, tmp_path / "renamed.safetensors", tensors, sha256=hash_tensors(tensors))
    with pytest.raises(ValueError, match=r"conv2\.weight is missing"):
        verify(path)
    tensors = load_file(exported) | {"fc9.bias": torch.zeros(3)}
    path = changed(exported, tmp_path / "more.safetensors", tensors, sha256=hash_tensors(tensors))
    with pytest.raises(ValueError, match=r"fc9\.bias is .* does not know it"):
        verify(path)


def test_swapped_towers_are_found(exported: Path, tmp_path: Path) -> None:
    """Own and other exchanged in a layer: all shapes fit, and the checksum is made anew."""
    for layer in ("conv3", "fc6", "fc7", "fc8"):
        tensors = load_file(exported)
        own, other = tensors[f"{layer}.weight"].chunk(2, dim=1)
        tensors[f"{layer}.weight"] = torch.cat([other, own], dim=1)
        path = changed(exported, tmp_path / "swapped.safetensors", tensors, sha256=hash_tensors(tensors))
        with pytest.raises(ValueError, match="known answer"):
            verify(path)


def test_another_table_is_found(exported: Path, tmp_path: Path) -> None:
    """The table is not in the checksum; a file that says `alexnet` has the same shapes and another function."""
    table = json.dumps(asdict(load_network("alexnet", **NETWORKS["alexnet"])))
    path = changed(exported, tmp_path / "table.safetensors", load_file(exported), network=table)
    with pytest.raises(ValueError, match="known answer"):
        verify(path)
    for about in ({"network": "[]"}, {"network": "{"}, {"network": '{"layers": 3}'}, {"known_answer": "{}"}):
        path = changed(exported, tmp_path / "damaged.safetensors", load_file(exported), **about)
        with pytest.raises(ValueError, match=r"damaged\.safetensors (has|is damaged \(.+\); export it again)"):
            verify(path)
    path = changed(exported, tmp_path / "foreign.safetensors", load_file(exported), format="other")
    with pytest.raises(ValueError, match="has no network with it"):
        verify(path)


@pytest.mark.parametrize(("error", "match"), [(None, "no epoch is finished"), (88.0, "guessing has 90.91 %")])
def test_untrained_weights_are_refused(tmp_path: Path, error: float | None, match: str) -> None:
    """With 600 images and 11 classes the error of guessing is 90.9 +- 1.2 %, so 88 % says nothing."""
    run = make_run(tmp_path, "alexnet", top1_error=error, initial=True)
    with pytest.raises(ValueError, match=match):
        export_run(ExportConfig(run=str(run)))
    assert not (run / "export").exists()
    found = verify(export_run(ExportConfig(run=str(run), force=True))[0])
    assert found.untrained == list(oracle.LAYERS)


@pytest.mark.parametrize("name", ["alexnet_v2", "half_tower", "torchvision_alexnet", "alexnet_2012"])
def test_each_initial_distribution_is_known(name: str) -> None:
    """Truncated, Xavier's, He's and torch's own; weights that are wider by half are not taken for them."""
    network = load_network(name, width=0.0625)
    towers = [Tower(network, len(CLASSES), index, seed=5) for index in range(network.towers)]
    tensors = merged_of(towers)
    assert untrained_layers(tensors, network, len(CLASSES)) == list(network.layers)
    wider = {name: tensor * 1.5 if "weight" in name else tensor for name, tensor in tensors.items()}
    assert untrained_layers(wider, network, len(CLASSES)) == []


def test_one_step_of_training_is_seen(tmp_path: Path) -> None:
    """A bias that moved at all is enough not to look as it was drawn."""
    path = export_run(ExportConfig(run=str(make_run(tmp_path, initial=True))))[0]
    tensors = load_file(path)
    tensors["fc8.bias"] += 1e-6
    moved = changed(path, tmp_path / "moved.safetensors", tensors, sha256=hash_tensors(tensors))
    assert verify(moved).untrained == list(oracle.LAYERS[:-1])


def test_what_cannot_be_exported_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with pytest.raises(ValueError, match="to=caffe is not known"):
        export_run(ExportConfig(run=str(run), to="caffe"))
    with pytest.raises(ValueError, match=r"config\.yaml"):
        export_run(ExportConfig(run=str(tmp_path)))
    (run / MEAN_IMAGE).unlink()
    with pytest.raises(ValueError, match=r"has no mean_image\.npy"):
        export_run(ExportConfig(run=str(run)))


@pytest.mark.parametrize(("name", "std"), [("no_exchange", UNSCALED), ("cifar_four_layer", (58.395, 57.12, 255.0))])
def test_onnx_is_the_same_function(tmp_path: Path, name: str, std: tuple[float, ...]) -> None:
    """Another engine, of one, two and five images: response norms, cut windows of both poolings, blocks, a scale."""
    import onnxruntime

    run = make_run(tmp_path, name, std=std)
    path, mean = export_run(ExportConfig(run=str(run), to="onnx"))
    network = load_network(name, **NETWORKS[name])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.get_inputs()
    assert (found.name, found.shape[1:]) == ("images", [3, network.image_size, network.image_size])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == CLASSES
    assert np.load(mean).shape == (3, network.image_size, network.image_size)
    generator = torch.Generator().manual_seed(3)
    towers = trained(network)
    for count in (1, 2, 5):
        images = torch.randn(count, 3, network.image_size, network.image_size, generator=generator) * 70
        with torch.no_grad():
            logits = forward(towers, images / torch.tensor(std)[:, None, None], InProcessExchange())
        output = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
        assert oracle.deviation(output, logits) < 1e-4


def make_another(run: Path, folder: Path) -> Path:
    """The same run from another seed, with another bias."""
    other = Path(shutil.copytree(run, folder / "other"))
    towers = trained(load_network("cifar_four_layer", **NETWORKS["cifar_four_layer"]))
    with torch.no_grad():
        next(tower.bias for tower in towers[0].modules() if getattr(tower, "bias", None) is not None).add_(1)
    for tower in towers:
        checkpoint.save_tower(other / "checkpoints", 120, tower, {})
    manifest = checkpoint.read_manifest(checkpoint.find(run))
    shutil.rmtree(other / "checkpoints" / "step-00000120")
    checkpoint.complete(other / "checkpoints", manifest, keep=1)
    config = other / "config.yaml"
    config.write_text(re.sub(r"(?m)^seed: \d+$", "seed: 7", config.read_text()))
    return other


@pytest.mark.parametrize("to", ["merged", "huggingface", "onnx", "html"])
def test_only_an_export_of_the_same_values_is_replaced(tmp_path: Path, to: str) -> None:
    """It says where it is from. That of another seed stays, and so does what is no file of ours."""
    run = make_run(tmp_path, "cifar_four_layer")
    settings = ExportConfig(run=str(run), to=to, output=str(tmp_path / "out"))
    path = export_run(settings)[0]
    origin = read_origin(path)
    tensors = load_file(export_run(ExportConfig(run=str(run), output=str(tmp_path / "merged")))[0])
    assert (origin["seed"], origin["step"], origin["commit"]) == ("0", "120", "unknown")
    assert origin["sha256"] == hash_tensors(tensors)
    assert export_run(settings)[0] == path
    with pytest.raises(ValueError, match=r"already, with other values \(seed 0, step 120, float32\), so nothing was"):
        export_run(replace(settings, run=str(make_another(run, tmp_path))))
    assert read_origin(path)["sha256"] == origin["sha256"]

    strangers = [b"", b"<!DOCTYPE html><p>mine</p>", b'<script type="text/plain" id="about">[1]</script>']
    if path.suffix == ".safetensors":
        strangers = [save({"a": torch.ones(3)})]  # what cannot be read is taken for damaged, which is written anew
    for content in strangers:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="already, and nothing in it says which network it holds, so nothing"):
            export_run(settings)
        assert path.read_bytes() == content
    if path.suffix == ".safetensors":
        path.write_bytes(content[:-1])
        export_run(settings)
        assert read_origin(path)["sha256"] == origin["sha256"]


@pytest.mark.parametrize(
    ("to", "companion"),
    [("merged", "plain.py"), *(("huggingface", name) for name in ("plain.py", "README.md", "config.json"))],
)
def test_a_strangers_file_beside_an_export_stays(tmp_path: Path, to: str, companion: str) -> None:
    """Those of an export are replaced, of an earlier release as well."""
    run = make_run(tmp_path, "cifar_four_layer")
    out = tmp_path / "out"
    settings = ExportConfig(run=str(run), to=to, output=str(out))
    out.mkdir()
    (out / companion).write_text("mine\n")
    with pytest.raises(ValueError, match=f"{companion} is there already, and is not from an export, so nothing was"):
        export_run(settings)
    assert [(file.name, file.read_text()) for file in out.iterdir()] == [(companion, "mine\n")]
    (out / companion).unlink()
    written = export_run(settings)
    with (out / "plain.py").open("a") as loader:
        loader.write("# of another release\n")
    assert export_run(settings) == written
    assert "another release" not in (out / "plain.py").read_text()


def test_missing_onnx_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"onnxruntime.*pip install -e '\.\[onnx\]'"):
        export_run(ExportConfig(run=str(tmp_path), to="onnx"))


def test_the_command_exports_and_verifies(tmp_path: Path) -> None:
    run = make_run(tmp_path, "cifar_four_layer")
    command = [sys.executable, str(ROOT / "launch" / "export.py")]
    options = {"cwd": tmp_path, "env": dict(os.environ), "capture_output": True, "text": True, "timeout": 100}
    done = subprocess.run([*command, f"run={run}"], **options, check=False)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    file = run / "export" / "cifar_four_layer-step-00000120.safetensors"
    assert f"written: {file}, {run / 'export' / 'plain.py'}" in done.stdout
    assert "11 classes (ant ... kite), step 120" in done.stdout
    assert "top-1 error 40.00 %" in done.stdout

    content = bytearray(file.read_bytes())
    content[-40] ^= 1
    file.write_bytes(content)
    done = subprocess.run([*command, f"verify={file}"], **options, check=False)  # type: ignore[call-overload]
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "SHA-256" in done.stderr
    assert len(done.stderr.splitlines()) == 1
