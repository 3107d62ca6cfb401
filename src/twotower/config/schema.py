"""The schema of conf/: every key that a yaml or the command line may set, with its type and unit.

Hydra merges the yaml files into these dataclasses, so that a misspelt key or a value of the wrong type stops at
composition with its name. `check` adds what types cannot say. Both run before any process is started.
"""

from dataclasses import dataclass, field

from omegaconf import MISSING

from twotower.config.frozen import Freezable
from twotower.config.roles import (
    Role,
    has_role,
    images_key,
    name_key,
    place_key,
    record_key,
    seed_key,
    speed_key,
    training_key,
)

LAYER_KINDS = ("conv", "linear")
READS = ("image", "own", "both")
STEPS = ("activation", "lrn", "spatial_norm", "pool", "dropout")
ACTIVATIONS = ("relu", "tanh", "sigmoid")
POOLINGS = ("max", "average")
INITIALS = ("normal", "truncated", "xavier", "kaiming", "torch")
UNSCALED = (1.0, 1.0, 1.0)  # the std of pixels that keep their 0..255
WANDB_MODES = ("offline", "online", "disabled")


@has_role(Role.NUMBERS)
@dataclass
class LayerConfig(Freezable):
    """One row of Figure 2. Sizes and paddings in pixels of the layer's input."""

    kind: str = MISSING  # conv | linear
    kernels: int | None = MISSING  # of all towers together; null: as many as there are classes
    reads: str = "own"  # image | own (the half this tower computed) | both (the exchange; with one tower: its own)
    size: int = 1
    stride: int = 1
    pad: int = 0  # zeros on all four sides
    overhang: int = 0  # zeros more on the right and bottom edge only
    groups: int = 1  # blocks of maps within one tower that do not see each other
    initial: str = training_key("normal")  # normal | truncated | xavier | kaiming | torch: see initial.py
    initial_std: float = training_key(0.01)  # of the normal and the truncated distribution
    initial_bias: float = training_key(0.0)
    rate: float = training_key(1.0)  # this layer's learning rate in multiples of the schedule's; 0 freezes it
    pooling: str = "max"  # max | average, where `then` has a pool
    then: list[str] = field(
        default_factory=list
    )  # steps in their order: activation, lrn, spatial_norm, pool, dropout


@has_role(Role.NUMBERS)
@dataclass
class LRNConfig(Freezable):
    """y_i = x_i (k + alpha * sum of x_j^2 over n neighbouring maps)^-beta, paper section 3.3."""

    n: int = 5
    k: float = 2.0
    alpha: float = 1e-4
    alpha_over_n: bool = False  # the 2012 code divides alpha by n (layer.py:1183)
    beta: float = 0.75


@has_role(Role.NUMBERS)
@dataclass
class SpatialNormConfig(Freezable):
    """y = x (1 + alpha * mean of x^2 over n x n pixels of the same map)^-beta; only in the 2012 code."""

    n: int = 5
    alpha: float = 1e-3
    beta: float = 0.75


@has_role(Role.NUMBERS)
@dataclass
class PoolConfig(Freezable):
    size: int = 3
    stride: int = 2
    partial: bool = True  # whether a window may hang over the right and bottom edge (2012, Caffe: yes)


@has_role(Role.NUMBERS)
@dataclass
class NetworkConfig(Freezable):
    name: str = training_key(MISSING)
    layers: dict[str, LayerConfig] = MISSING
    leave_out: list[str] = training_key(default_factory=list)  # rows to go without: see `leave_out_layers`
    towers: int = 2  # 2 | 1, each in a process of its own
    activation: str = "relu"  # relu | tanh | sigmoid: of every layer that has the step
    lrn: LRNConfig | None = None
    spatial_norm: SpatialNormConfig | None = None
    pool: PoolConfig = field(default_factory=PoolConfig)
    dropout_keep: float = 0.5  # probability that a unit is kept; 1 switches dropout off
    dropout_scaling: str = "test"  # test (2012: times keep at test) | training (divided by keep in training)
    exchange_precision: str = training_key("single")  # single | half: of what crosses between the towers
    width: float = 1.0  # factor on the kernels of every layer; 1 is the paper's
    image_size: int = 224
    prepared_size: int = training_key(256)  # pixels of an image before cropping, where the data set leaves it open
    initial_bias: float | None = training_key(None)  # of every layer; null: as its row says
    bias_rate: float = training_key(
        1.0
    )  # first rate of the biases, in multiples of the weights'; recorded runs differ
    bias_decay: bool = training_key(True)  # whether weight decay reaches the biases


@has_role(Role.NUMBERS)
@dataclass
class DataConfig(Freezable):
    kind: str = MISSING  # folder | shapes | synthetic
    root: str | None = images_key(None)  # holds train/<class>/* and val/<class>/*
    size: int = 256  # pixels: the centre square that images are brought to; a prepared set has its own
    cache: str | None = images_key(None)  # holds index, mean image and colour PCA; null: root/.twotower
    on_error: str = "stop"  # stop | skip: what a file that cannot be decoded does to the preparation
    num_train: int = 0  # images that `shapes` draws or `synthetic` pretends to have
    num_val: int = 0
    num_classes: int = 0  # of `synthetic`


@has_role(Role.NUMBERS)
@dataclass
class InputConfig(Freezable):
    """The way of an image from the file to conv1 (paper section 4.1)."""

    crop_size: int = 224  # pixels; what conv1 sees, so network.image_size
    random_crop: bool = True  # false: always the centre
    offsets: int | None = 33  # positions of the crop in each direction: 33 in 2012, 32 in the paper; null: all
    flip: bool = True
    images_per_draw: int = 1  # consecutive images that share crop and flip: 32 in the 2012 code
    mean: str = "central"  # central (2012: the mean's central 224) | aligned (cropped as the image is)
    mean_value: list[float] | None = None  # R, G, B in 0..255, instead of the mean image
    std: list[float] = field(default_factory=lambda: list(UNSCALED))  # of R, G, B in 0..255: divides what is left
    colour_noise: str = "2012"  # none | 2012 | paper
    colour_noise_std: float = 0.1  # of the factors alpha
    colour_noise_epochs: float | None = None  # epochs with colour noise; null: all, or as the schedule says
    loader: str = "auto"  # dali | torch (any system) | auto: DALI where it can be imported, else torch
    device: str = "auto"  # auto | cpu | gpu: where DALI decodes
    threads: int = speed_key(0)  # of the loader per process; 0: the process's share of the cores
    decode_once: str = speed_key("auto")  # yes | no | auto: each tower decodes half of a batch, and they swap crops


@has_role(Role.TRAINING)
@dataclass
class OptimConfig(Freezable):
    rule: str = "paper"  # paper (the rate inside the velocity) | torch (torch.optim.SGD as it is)
    batch_size: int = 128  # images per step and replica
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4


@has_role(Role.TRAINING)
@dataclass
class ChangeConfig(Freezable):
    """A change that was made by hand after so many epochs; null leaves a value as it is."""

    epoch: float = MISSING  # of the recorded run
    weights: float | None = None  # learning rate as a multiple of optim.learning_rate; 0 freezes
    biases: float | None = None
    layers: list[str] = field(default_factory=list)  # none: all
    but: list[str] = field(default_factory=list)  # except these
    colour_noise: bool | None = None  # false: switched off


@has_role(Role.TRAINING)
@dataclass
class ScheduleConfig(Freezable):
    rule: str = MISSING  # plateau | fixed | recorded | exponential
    epochs: int = MISSING
    recorded_epochs: float | None = None  # of the run of 2012; `changes` are scaled from these to `epochs`
    changes: list[ChangeConfig] = field(default_factory=list)  # `recorded`; `exponential`: only freezing, noise off
    divide_over_run: float = 250.0  # `exponential`: first rate / last rate of the weights
    levels: int | None = 4  # `exponential`: equal intervals of constant rate; null: lowered at every step
    bias_divide_over_run: float = 10.0
    bias_levels: int | None = 2
    max_steps: int | None = None  # stop after so many steps, whatever the epoch
    divide_by: float = 10.0
    drop_epochs: list[int] = field(default_factory=list)  # `fixed`: epochs after which the rate is divided
    patience: int = 3  # `plateau`: epochs without a better validation error before the rate is divided
    max_drops: int = 3  # `plateau`


@has_role(Role.TRAINING)
@dataclass
class InitialWeightsConfig(Freezable):
    path: str | None = None  # a run, a checkpoint or a file of weights; null: drawn at random
    layers: list[str] = field(default_factory=list)  # none: all, except a last layer for other classes


@has_role(Role.RECORD)
@dataclass
class CheckpointConfig(Freezable):
    every_steps: int | None = None  # null: at the end of each epoch only
    keep: int = 2


@has_role(Role.RECORD)
@dataclass
class LoggingConfig(Freezable):
    every_steps: int = 10
    scales_every_steps: int = 100  # of each layer: mean size of weights, updates and outputs
    stuck_after_steps: int = 200  # after so many steps at ln(classes) a loss is called stuck
    # Where these are null, W&B's own environment variable counts, if there is one: see wandb_settings.py.
    wandb: str | None = None  # offline | online | disabled; null: WANDB_MODE, else offline
    wandb_checkpoints: str = "none"  # none | last | all: which of them W&B keeps as artifacts
    project: str | None = None  # null: WANDB_PROJECT, else twotower
    entity: str | None = None  # user or team; null: WANDB_ENTITY, else that of the key
    group: str | None = None  # null: WANDB_RUN_GROUP, else the sweep's name in a sweep, else the run's folder
    name: str | None = None  # of the W&B run; null: WANDB_NAME, else the run's folder
    tags: list[str] | None = None  # null: WANDB_TAGS, else none; network and ablation are always among them
    notes: str | None = None  # null: WANDB_NOTES
    system: str = "auto"  # yes | no | auto: whether W&B watches GPU and memory; auto: where a GPU trains
    tensorboard: bool = False  # also, or instead: event files in RUN/tensorboard


@has_role(Role.SPEED)
@dataclass
class MachineConfig(Freezable):
    device: str = "auto"  # auto | cpu | cuda
    transport: str = "auto"  # auto | gloo | nccl | shared_gpu
    replicas: int = training_key(1)  # of all towers, each in its own processes, that launch/two_gpu.py starts
    threads: int = 0  # of torch per process; 0: cores / processes on this host
    timeout_seconds: float = 60.0  # how long a tower waits for the other one
    check_every_steps: int = 50  # how often the towers compare checksums of the pixels (labels: every step)


@has_role(Role.TRAINING)
@dataclass
class Config(Freezable):
    network: NetworkConfig = MISSING
    data: DataConfig = MISSING
    input: InputConfig = MISSING
    optim: OptimConfig = MISSING
    schedule: ScheduleConfig = MISSING
    initial_weights: InitialWeightsConfig = field(default_factory=InitialWeightsConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = MISSING
    machine: MachineConfig = MISSING
    seed: int = seed_key(0)
    name: str = name_key(MISSING)  # of the run; the folder runs/<name>-<date> carries it
    ablation: str = "none"  # set by the yaml of the ablation
    run_dir: str | None = place_key(None)  # null: runs/<name>-<date>-<time>
    resume: str = place_key("none")  # none | auto (goes on where this run was interrupted) | a run or a checkpoint
    sweep_dir: str | None = place_key(None)  # null: sweeps/<name>-<what is swept>
    command: str | None = record_key(None)  # what starts this run again; set by launch/two_gpu.py


@dataclass
class EvaluateConfig:
    """The schema of launch/evaluate.py."""

    run: str | None = None  # a folder, when it is given with a key
    runs: list[str] = field(default_factory=list)  # run directories of an ensemble, instead of run
    weights: str | None = None  # of launch/export.py, Caffe or torchvision, instead of run; needs data_root
    mean: str | None = None  # the mean image that belongs to Caffe's weights; null: Caffe's mean of each channel
    network: NetworkConfig | None = None  # of `weights`
    input: InputConfig | None = None  # of `weights`; each network brings its own
    coefficients: list[float] = field(default_factory=list)  # of the members; none: searched, as in 2012
    checkpoint: str | None = None  # of run, as step-00000120 or 120; null: the last one
    crops: str = "centre"  # centre | ten (paper 4.1: corners and centre, mirrored; has the centre with it)
    fresh: bool = False  # true: computes again what RUN/predictions holds
    batch_size: int = 128  # images at a time, not crops
    device: str = "auto"  # auto | cpu | cuda
    data_root: str | None = None  # where the images are now; null: where the run was trained on them
    split: str = "val"  # val | test (ILSVRC-2010 has one, and Table 1 is measured on it)
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
    checkpoint: str | None = None  # of run, as step-00000120 or 120; null: the last one
    crops: str = "centre"  # centre | ten (paper 4.1: four corners and centre, and their mirrors)
    device: str = "auto"  # auto | cpu | cuda
    output: str | None = None  # a picture: .png, .svg or .pdf; null: RUN/figures/predict.png, of weights predict.png


@dataclass
class LabbookConfig:
    """The schema of launch/labbook.py."""

    runs: list[str] = field(default_factory=list)  # of ours, beside those of 2012; with a key: 'runs=[A,B]'
    format: str = "text"  # text | markdown | csv
    output: str | None = None  # a file; null: the screen


@dataclass
class DownloadConfig:
    file: str = MISSING
    url: str = MISSING
    checksum: str = MISSING  # md5:... or sha256:...


@dataclass
class SourceConfig:
    """A data set as it is handed out. File names are relative to `root`."""

    name: str = MISSING
    kind: str = MISSING  # ilsvrc | tree
    root: str | None = None  # folder with the archives, or with the images
    train: str | None = None  # ilsvrc: the tar of class tars
    val: str | None = None  # ilsvrc
    test: str | None = None  # ilsvrc: null where its truth was not published
    devkit: str | None = None  # ilsvrc: ground truth of val, names of the classes
    test_truth: str | None = None  # ilsvrc: one ILSVRC id a line
    archives: list[str] = field(default_factory=list)  # tree: names or patterns; none: a folder that is not packed
    splits: dict[str, str] = field(default_factory=dict)  # tree: folder name -> train | val | test
    expected: dict[str, int | None] = field(default_factory=dict)  # split -> number of images; null: any
    downloads: list[DownloadConfig] = field(default_factory=list)
    page: str | None = None  # where a person gets the archives


@dataclass
class PrepareConfig:
    """The schema of launch/prepare_data.py."""

    source: SourceConfig = MISSING
    output: str = MISSING  # a new or empty folder
    size: int = 256  # pixels: the shorter side, and the centre square (paper section 2)
    quality: int = 95  # of the JPEGs: 95 in the 2014 tool (make-data/pyext.cpp:102-125); 85 takes 57 % of the disk
    images_per_shard: int = 1024  # as in the batches of 2012 (fix-big-imgnet.py:10)
    max_rejects: float = 0.001  # part of the images that may be unusable
    workers: int = 0  # processes; 0: one for each core
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
    part: str = "all"  # all | towers (beside one process) | input (beside a DataLoader) | training (each input)
    rounds: int = 3
    steps: int = 4  # of training, timed in each turn, after one that is not
    input_steps: int = 8  # batches of input alone, timed in each turn
    num_classes: int = 1000
    data_root: str | None = None  # a prepared set or a folder of images; null: JPEGs drawn for the purpose
    output: str = "benchmark.json"


@dataclass
class DescribeConfig:
    """The schema of launch/describe.py."""

    network: NetworkConfig = MISSING
    input: InputConfig = MISSING  # not used; each network brings its own
    num_classes: int = 1000
    batch_size: int = 128  # for memory and exchanged bytes
    output: str | None = None  # file.svg, file.png or file.pdf: also draws Figure 2
    theme: str = "light"  # light | dark: the page that the drawing is for; it has no background of its own


@dataclass
class ExportConfig:
    """The schema of launch/export.py."""

    run: str | None = None  # a folder, when it is given with a key
    to: str = "merged"  # merged (safetensors, and plain.py that loads it) | onnx (needs pip install -e '.[onnx]')
    checkpoint: str | None = None  # of run, as step-00000120 or 120; null: the last one
    output: str | None = None  # a folder; null: RUN/export
    force: bool = False  # true: also a network that is not better than guessing
    verify: str | None = None  # a file that to=merged made: checks it instead


@dataclass
class FigureConfig:
    """The schema of launch/figure.py."""

    figure: str = MISSING
    run: str | None = None  # a folder, or a pattern that matches one, with a key: 'run=sweeps/figure1/*seed=0'
    runs: list[str] = field(default_factory=list)  # several of these: 'runs=[sweeps/figure1/*]'
    output: str | None = None  # .png, .svg or .pdf; null: in RUN/figures, of several runs <figure>.png
    data_root: str | None = None  # figure4, activations, confusion; null: the folder that the run was trained on
    level: float = 25.0  # figure1: percent of training error to which epochs are counted
    images: list[str] = field(default_factory=list)  # figure4: validation images by place or name; none: 8 drawn
    queries: list[str] = field(default_factory=list)  # figure4: images whose neighbours are shown; none: 5 drawn
    seed: int = 0  # figure4: of the draw
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
