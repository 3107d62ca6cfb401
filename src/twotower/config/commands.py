"""The schemas of the commands of launch/ other than the training: every key with its type and unit."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from twotower.config.keys import key
from twotower.config.schema import (
    MOST_CLASSES,
    MOST_IMAGES,
    MOST_PIXELS,
    PRECISIONS,
    YES_NO_AUTO,
    InputConfig,
    MachineConfig,
    NetworkConfig,
    OptimConfig,
)

CROPS = ("centre", "ten")
DEVICES = ("auto", "cpu", "cuda")


@dataclass
class EvaluateConfig:
    """The schema of launch/evaluate.py."""

    run: str | None = None  # a folder, when it is given with a key
    runs: list[str] = field(default_factory=list)  # run directories of an ensemble, instead of run
    weights: str | None = None  # of launch/export.py, Caffe or torchvision, instead of run; needs data_root
    mean: str | None = None  # the mean image that belongs to Caffe's weights; null: Caffe's mean of each channel
    network: NetworkConfig | None = None  # of `weights`
    input: InputConfig | None = None  # of `weights`; each network brings its own
    coefficients: list[float] = key([], least=0, most=1e6)  # of the members; none: searched, as in 2012
    checkpoint: str | None = None  # of run, as step-00000120 or 120; null: the last one
    crops: str = key("centre", choices=CROPS)  # ten: corners and centre, mirrored (paper 4.1); has the centre with it
    fresh: bool = False  # true: computes again what RUN/predictions holds
    batch_size: int = key(128, least=1, most=65536)  # images at a time, not crops
    device: str = key("auto", choices=DEVICES)
    precision: str | None = key(None, choices=PRECISIONS)  # null: that in which the run was trained; weights: fp32
    data_root: str | None = None  # where the images are now; null: where the run was trained on them
    split: str = key("val", choices=("val", "test"))  # ILSVRC-2010 has a test split, and Table 1 is measured on it
    output: str | None = None  # a JSON file for the results of an ensemble or of `weights`


@dataclass
class PredictConfig:
    """The schema of launch/predict.py."""

    photographs: list[str] = field(default_factory=list)  # files, or folders of them; usually given without a key
    run: str | None = None  # run directory
    weights: str | None = None  # of launch/export.py, Caffe or torchvision, instead of run
    mean: str | None = None  # the mean image that belongs to Caffe's weights; null: Caffe's mean of each channel
    network: NetworkConfig | None = None  # of `weights`; null: what the file says
    input: InputConfig | None = None  # of `weights`; each network brings its own
    check: bool = True  # false: also a file of launch/export.py that is not what it was, or no better than guessing
    checkpoint: str | None = None  # of run, as step-00000120 or 120; null: the last one
    crops: str = key("centre", choices=CROPS)  # ten: four corners and centre, and their mirrors (paper 4.1)
    device: str = key("auto", choices=DEVICES)
    output: str | None = None  # a picture: .png, .svg or .pdf; null: RUN/figures/predict.png, of weights predict.png


@dataclass
class FeaturesConfig:
    """The schema of launch/features.py."""

    data_root: str | None = None  # a folder with images at any depth, or a prepared set
    split: str | None = key(None, choices=("train", "val", "test"))  # of a prepared set; null: val
    # Layers and steps by name: conv2 is the whole layer, conv2.sum its sum alone, conv2.lrn the layer up to its norm.
    layers: list[str] = field(default_factory=list)
    tower: str = key("both", choices=("0", "1", "both"))  # both: tower 0's maps or units first
    output: str | None = None  # a new folder
    format: str = key("npy", choices=("npy", "safetensors"))  # npy: a file for each layer
    on_error: str = key("stop", choices=("stop", "skip"))  # effect of a file that cannot be used; skip: no row for it
    batch_size: int = key(32, least=1, most=65536)
    run: str | None = None  # run directory
    weights: str | None = None  # of launch/export.py, Caffe or torchvision, instead of run
    mean: str | None = None  # the mean image that belongs to Caffe's weights; null: Caffe's mean of each channel
    network: NetworkConfig | None = None  # of `weights`; null: what the file says
    input: InputConfig | None = None  # of `weights`; each network brings its own
    check: bool = True  # false: also a file of launch/export.py that is not what it was, or no better than guessing
    checkpoint: str | None = None  # of run, as step-00000120 or 120; null: the last one
    device: str = key("auto", choices=DEVICES)


@dataclass
class LabbookConfig:
    """The schema of launch/labbook.py."""

    runs: list[str] = field(default_factory=list)  # of ours, beside those of 2012; with a key: 'runs=[A,B]'
    format: str = key("text", choices=("text", "markdown", "csv"))
    output: str | None = None  # a file; null: the screen


@dataclass
class DownloadConfig:
    file: str = MISSING
    url: str = MISSING
    checksum: str = MISSING  # md5:... or sha256:...


@dataclass
class SourceConfig:
    """A data set as it is handed out. File names are relative to `root`."""

    name: str = key(MISSING, names_files=True)
    kind: str = key(MISSING, choices=("ilsvrc", "tree"))
    root: str | None = None  # folder with the archives, or with the images
    train: str | None = None  # ilsvrc: the tar of class tars
    val: str | None = None  # ilsvrc
    test: str | None = None  # ilsvrc: null where its truth was not published
    devkit: str | None = None  # ilsvrc: ground truth of val, names of the classes
    test_truth: str | None = None  # ilsvrc: one ILSVRC id a line
    archives: list[str] = field(default_factory=list)  # tree: names or patterns; none: a folder that is not packed
    # tree: folder name -> train, val or test.
    splits: dict[str, str] = key({}, choices=("train", "val", "test"))
    # Split -> number of images; null: any.
    expected: dict[str, int | None] = key({}, least=0, most=MOST_IMAGES)
    downloads: list[DownloadConfig] = field(default_factory=list)
    page: str | None = None  # where a person gets the archives


@dataclass
class PrepareConfig:
    """The schema of launch/prepare_data.py."""

    source: SourceConfig = MISSING
    output: str = MISSING  # a new or empty folder
    size: int = key(
        256, least=8, most=MOST_PIXELS
    )  # pixels: the shorter side, and the centre square (paper section 2)
    # Quality of the JPEGs: 95 in the 2014 tool (make-data/pyext.cpp:102-125); 85 takes 57 % of the disk.
    quality: int = key(95, least=1, most=100)
    images_per_shard: int = key(1024, least=1, most=65536)  # as in the batches of 2012 (fix-big-imgnet.py:10)
    max_rejects: float = key(0.001, least=0, most=1)  # part of the images that may be unusable
    workers: int = key(0, least=0, most=1024)  # processes; 0: one for each core
    download: bool = False  # missing archives are fetched; without source.root into datasets/downloads/<source>
    verify: bool = False  # true: only check the set in output
    picture: dict[str, InputConfig] = field(default_factory=dict)  # the presets that the picture shows


@dataclass
class BenchmarkConfig:
    """The schema of launch/benchmark.py."""

    network: NetworkConfig = MISSING
    input: InputConfig = MISSING
    optim: OptimConfig = MISSING
    machine: MachineConfig = MISSING
    # The towers beside one process and the floor, the input beside a DataLoader, the training with each input,
    # batches of several sizes, one replica beside two, or all of these.
    part: str = key("all", choices=("all", "towers", "input", "training", "batches", "replicas"))
    precisions: list[str] = key([], choices=PRECISIONS)  # of the towers, in turn; none: all that the machine has
    rounds: int = key(3, least=1, most=10**6)
    steps: int = key(4, least=1, most=10**6)  # of training, timed in each turn, after one that is not
    input_steps: int = key(8, least=1, most=10**6)  # batches of input alone, timed in each turn
    num_classes: int = key(1000, least=2, most=MOST_CLASSES)
    data_root: str | None = None  # a prepared set or a folder of images; null: JPEGs drawn for the purpose
    output: str = "benchmark.json"
    picture: str | None = None  # a PNG, SVG or PDF of the parts of a step, where part=towers or all


@dataclass
class DoctorConfig:
    """The schema of launch/doctor.py."""

    network: NetworkConfig = MISSING  # whose swaps and steps are tried
    input: InputConfig = MISSING
    optim: OptimConfig = MISSING
    machine: MachineConfig = MISSING
    num_classes: int = key(1000, least=2, most=MOST_CLASSES)
    output: str | None = None  # a Markdown file with what the screen shows; null: the screen alone


@dataclass
class DescribeConfig:
    """The schema of launch/describe.py."""

    network: NetworkConfig = MISSING
    input: InputConfig = MISSING  # not used; each network brings its own
    num_classes: int = key(1000, least=2, most=MOST_CLASSES)
    batch_size: int = key(128, least=1, most=65536)  # for memory and exchanged bytes
    output: str | None = None  # file.svg, file.png or file.pdf: also draws Figure 2
    # The page that the drawing is for; it has no background of its own.
    theme: str = key("light", choices=("light", "dark"))


@dataclass
class VolumeConfig:
    """The schema of launch/volume.py. Links in GB/s (1e9 bytes) in one direction, at their peak."""

    network: NetworkConfig = MISSING
    input: InputConfig = MISSING  # not used; each network brings its own
    num_classes: int = key(1000, least=2, most=MOST_CLASSES)
    batch_size: int = key(128, least=1, most=65536)  # images per step and replica
    precision: str = key("fp32", choices=PRECISIONS)  # as machine.precision
    replicas: list[int] = key([1, 2, 8, 64, 1000, 4000], least=1, most=10**6)
    replicas_per_node: int = key(4, least=1, most=1024)  # of two GPUs each
    # Of one replica's arithmetic; 50 was measured on two cores (docs/performance.md).
    images_per_second: float = key(50.0, least=0.001, most=1e9)
    # NVLink 3 of an A100: 600 both ways together (NVIDIA's data sheet).
    nvlink: float = key(300.0, least=0.001, most=1e9)
    pcie: float = key(31.5, least=0.001, most=1e9)  # PCIe 4.0 x16: 16 GT/s, 16 lanes, 128 of 130 bits
    ethernet: float = key(12.5, least=0.001, most=1e9)  # 100 Gbit/s Ethernet
    reached: float = key(0.8, least=0.001, most=1)  # share of the peak that a link attains: assumed
    latency_within: float = key(10e-6, least=0, most=60)  # seconds of a message within a node: assumed
    latency_between: float = key(30e-6, least=0, most=60)  # and between nodes: assumed


@dataclass
class MemoryConfig:
    """The schema of launch/memory.py."""

    network: NetworkConfig = MISSING
    input: InputConfig = MISSING  # not used; each network brings its own
    num_classes: int = key(1000, least=2, most=MOST_CLASSES)
    batch_size: int = key(128, least=1, most=65536)
    precision: str = key("fp32", choices=("fp32", "bf16"))  # as machine.precision
    fused_steps: str = key("auto", choices=YES_NO_AUTO)  # as machine.fused_steps
    measure: bool = False  # true: also trains for a step, in two processes and in one, and reads their peaks
    output: str | None = None  # file.svg, file.png or file.pdf: also draws the parts


@dataclass
class TimelineConfig:
    """The schema of launch/timeline.py."""

    network: NetworkConfig = MISSING
    input: InputConfig = MISSING
    optim: OptimConfig = MISSING
    machine: MachineConfig = MISSING
    steps: int = key(5, least=1, most=1000)  # recorded, after two that are not; the one of median length is drawn
    num_classes: int = key(1000, least=2, most=MOST_CLASSES)  # of random images
    data_root: str | None = None  # a prepared set or a folder of images; null: random tensors, which cost no loading
    output: str = "timeline.svg"  # or .png, .pdf; the trace is written beside it, as .json


@dataclass
class ExportConfig:
    """The schema of launch/export.py."""

    run: str | None = None  # a folder, when it is given with a key; a sweep's: each of its runs
    # safetensors with plain.py that loads it; the same as a folder for Hugging Face's hub, with a model card; ONNX,
    # which needs pip install -e '.[onnx]'; or a page for a browser.
    to: str = key("merged", choices=("merged", "huggingface", "onnx", "html"))
    checkpoint: str | None = None  # of run, as step-00000120 or 120; all: each of them; null: the last one
    # A folder, in which each run of a sweep gets one of its own; null: RUN/export, or RUN/huggingface.
    output: str | None = None
    dtype: str = key("float32", choices=("float32", "float16", "bfloat16"))  # to which the stored values are rounded
    # Whether the errors are measured anew on the run's validation images; auto: where these are found.
    measure: str = key("auto", choices=YES_NO_AUTO)
    data_root: str | None = None  # null: the folder that the run was trained on
    force: bool = False  # true: also a network that is not better than guessing, written or verified
    verify: str | None = None  # a file that to=merged made: checks it instead


@dataclass
class IdentifyConfig:
    """The schema of launch/identify.py."""

    # Weights of anybody: .pth, .pt, .bin, .safetensors, .caffemodel, .npy, .npz, or a run's folder.
    file: str = MISSING


@dataclass
class FigureConfig:
    """The schema of launch/figure.py."""

    figure: str = MISSING
    run: str | None = None  # a folder, or a pattern that matches one, with a key: 'run=sweeps/figure1/*seed=0'
    runs: list[str] = field(default_factory=list)  # several of these: 'runs=[sweeps/figure1/*]'
    output: str | None = None  # .png, .svg or .pdf; null: in RUN/figures, of several runs <figure>.png
    data_root: str | None = None  # figure4, activations, confusion, towers; null: that of the training
    level: float = key(25.0, above=0, below=100)  # figure1: percent of training error to which epochs are counted
    images: list[str] = field(default_factory=list)  # figure4: validation images by place or name; none: 8 drawn
    queries: list[str] = field(default_factory=list)  # figure4: images whose neighbours are shown; none: 5 drawn
    seed: int = key(0, least=0, most=2**63 - 1)  # figure4: of the draw
    layer: str | None = None  # activations: a convolution; null: the first
    image: str | None = None  # activations: a validation image, by place or name; null: the first


@dataclass
class DashboardConfig:
    """The schema of launch/dashboard.py."""

    network: NetworkConfig = MISSING
    input: InputConfig = MISSING  # not used; each network brings its own
    project: str | None = None  # as logging.project; null: WANDB_PROJECT, else twotower
    entity: str | None = None  # user or team; null: WANDB_ENTITY, else that of the key
    name: str = "two towers"  # of the view
    group: str | None = None  # only the runs of this sweep or run; null: all
    push: bool = False  # true: saves it, which needs a key


@dataclass
class ReportConfig:
    """The schema of launch/report.py."""

    folders: list[str] = field(default_factory=list)  # the folders, when they are given with a key: 'folders=[A,B]'
    output: str = "report"  # a folder for report.html, table.csv, table.md, runs.csv and pictures
    baseline: str | None = None  # as the table calls it; null: the paper's network without an ablation
    evaluate: bool = False  # true: first evaluates each finished run in ten crops, where that was not done
    data_root: str | None = None  # where the images of all runs are now; null: the folder that each was trained on
    figures: bool = False  # true: first draws figure4 and activations of each finished run, where that was not done
    keep: str | None = None  # a folder for each finished run without its weights, which later reports read as well
