"""The schema of conf/: every key that a yaml or the command line may set, with its type and unit.

Hydra merges the yaml files into these dataclasses, so that a misspelt key or a value of the wrong type stops at
composition with its name. `check` adds what types cannot say. Both run before any process is started.
"""

from dataclasses import dataclass, field

from omegaconf import MISSING

from twotower.config.frozen_config import Freezable
from twotower.config.key_roles import Role
from twotower.config.keys import has_role, key

STEPS = ("activation", "lrn", "spatial_norm", "pool", "dropout")
UNSCALED = (1.0, 1.0, 1.0)  # the std of pixels that keep their 0..255
WANDB_MODES = ("offline", "online", "disabled")
PRECISIONS = ("fp32", "tf32", "bf16")
YES_NO_AUTO = ("yes", "no", "auto")

# The most that keys of a kind take: far beyond any use, and below what would hang, overflow or fill the machine.
MOST_PIXELS = 4096  # side of an image, a kernel or a window
MOST_STEPS = 10**9
MOST_EPOCHS = 10**6
MOST_DROPS = 100  # of the learning rate; 1000 to this power is still a number
MOST_FACTOR = 1e9  # of rates
MOST_IMAGES = 2 * 10**7  # of a data set; the whole of ImageNet has 14 million
MOST_CLASSES = 10**6
MOST_THREADS = 1024


@has_role(Role.NUMBERS)
@dataclass
class LayerConfig(Freezable):
    """One row of Figure 2. Sizes and paddings in pixels of the layer's input."""

    # local: a convolution whose weights are not shared, so that each output pixel has kernels and biases of its own.
    kind: str = key(MISSING, choices=("conv", "local", "linear"))
    # Kernels of all towers together; null: as many as there are classes.
    kernels: int | None = key(MISSING, least=1, most=10**6)
    # The image, the half that this tower computed, or both halves by the exchange (with one tower: its own).
    reads: str = key("own", choices=("image", "own", "both"))
    size: int = key(1, least=1, most=MOST_PIXELS)
    stride: int = key(1, least=1, most=MOST_PIXELS)
    pad: int = key(0, least=0, most=MOST_PIXELS)  # zeros on all four sides
    overhang: int = key(0, least=0, most=MOST_PIXELS)  # zeros more on the right and bottom edge only
    groups: int = key(1, least=1, most=10**6)  # blocks of maps within one tower that do not see each other
    # Distribution of the first weights: see model/initial_weights.py.
    initial: str = key("normal", Role.TRAINING, choices=("normal", "truncated", "xavier", "kaiming", "torch"))
    initial_std: float = key(0.01, Role.TRAINING, least=0, most=1e6)  # of the normal and the truncated distribution
    initial_bias: float = key(0.0, Role.TRAINING, least=-1e6, most=1e6)
    # Learning rate in multiples of the schedule's; 0 freezes the layer.
    rate: float = key(1.0, Role.TRAINING, least=0, most=MOST_FACTOR)
    weight_decay: float | None = key(None, Role.TRAINING, least=0, most=1e6)  # null: optim.weight_decay
    pooling: str = key("max", choices=("max", "average"))  # where `then` has a pool
    then: list[str] = key([], choices=STEPS)  # steps in their order
    after: str | None = key(None, Role.TRAINING)  # row behind which this one stands; null: where it is written


@has_role(Role.NUMBERS)
@dataclass
class LRNConfig(Freezable):
    """y_i = x_i (k + alpha * sum of x_j^2 over n neighbouring maps)^-beta, paper section 3.3."""

    n: int = key(
        5, least=1, most=MOST_PIXELS - 1, odd=True
    )  # even windows have no middle; Caffe refuses them as well (lrn_layer.cpp)
    k: float = key(2.0, above=0, most=1e6)  # with 0 a map of zeros is not a number
    alpha: float = key(1e-4, least=0, most=1e6)
    alpha_over_n: bool = False  # the 2012 code divides alpha by n (layer.py:1183)
    beta: float = key(0.75, least=0, most=100)


@has_role(Role.NUMBERS)
@dataclass
class SpatialNormConfig(Freezable):
    """y = x (1 + alpha * mean of x^2 over n x n pixels of the same map)^-beta; only in the 2012 code."""

    n: int = key(5, least=1, most=MOST_PIXELS - 1, odd=True)
    alpha: float = key(1e-3, least=0, most=1e6)
    beta: float = key(0.75, least=0, most=100)


@has_role(Role.NUMBERS)
@dataclass
class PoolConfig(Freezable):
    size: int = key(3, least=1, most=MOST_PIXELS)
    stride: int = key(2, least=1, most=MOST_PIXELS)
    partial: bool = True  # whether a window may hang over the right and bottom edge (2012, Caffe: yes)


@has_role(Role.NUMBERS)
@dataclass
class NetworkConfig(Freezable):
    """A table of layers, and what holds for all of them.

    Initial values and the rates of biases stand here and not in `optim`, because a preset of conf/network is the
    record of a network as it was trained; their role says that they belong to the training.
    """

    name: str = key(MISSING, Role.TRAINING, names_files=True)
    layers: dict[str, LayerConfig] = MISSING
    leave_out: list[str] = key([], Role.TRAINING)  # rows to go without: see `arrange_layers`
    towers: int = key(2, choices=(1, 2))  # each in a process of its own
    activation: str = key("relu", choices=("relu", "tanh", "sigmoid"))  # of every layer that has the step
    lrn: LRNConfig | None = None
    spatial_norm: SpatialNormConfig | None = None
    pool: PoolConfig = field(default_factory=PoolConfig)
    dropout_keep: float = key(0.5, above=0, most=1)  # probability that a unit is kept; 1 switches dropout off
    # test: outputs times keep at test, as in 2012; training: divided by keep in training.
    dropout_scaling: str = key("test", choices=("test", "training"))
    exchange_precision: str = key("single", Role.TRAINING, choices=("single", "half"))  # of what crosses
    width: float = key(1.0, above=0, most=64)  # factor on the kernels of every layer; 1 is the paper's
    image_size: int = key(224, least=1, most=MOST_PIXELS)
    # Pixels of an image before cropping, if data leaves it open.
    prepared_size: int = key(256, Role.TRAINING, least=1, most=MOST_PIXELS)
    # First bias of every layer; null: as its row says.
    initial_bias: float | None = key(None, Role.TRAINING, least=-1e6, most=1e6)
    # First rate of the biases, in multiples of the weights'.
    bias_rate: float = key(1.0, Role.TRAINING, least=0, most=MOST_FACTOR)
    bias_decay: bool = key(True, Role.TRAINING)  # whether weight decay reaches the biases

    def layer_decays(self) -> dict[str, float]:
        """The weight decay of each layer that has one of its own."""
        return {name: row.weight_decay for name, row in self.layers.items() if row.weight_decay is not None}


@has_role(Role.NUMBERS)
@dataclass
class DataConfig(Freezable):
    kind: str = key(MISSING, choices=("folder", "shapes", "synthetic"))
    root: str | None = key(None, Role.IMAGES)  # holds train/<class>/* and val/<class>/*
    # Pixels: the centre square that images are brought to; a prepared set has its own.
    size: int = key(256, least=1, most=MOST_PIXELS)
    cache: str | None = key(None, Role.IMAGES)  # holds index, mean image and colour PCA; null: root/.twotower
    on_error: str = key("stop", choices=("stop", "skip"))  # effect of a file that cannot be decoded
    num_train: int = key(0, least=0, most=MOST_IMAGES)  # images that `shapes` draws or `synthetic` pretends to have
    num_val: int = key(0, least=0, most=MOST_IMAGES)
    num_classes: int = key(0, least=0, most=MOST_CLASSES)  # of `synthetic`


@has_role(Role.NUMBERS)
@dataclass
class InputConfig(Freezable):
    """The way of an image from the file to conv1 (paper section 4.1)."""

    # Pixels that conv1 sees, as network.image_size; given here too, because an input travels without its network.
    crop_size: int = key(224, least=1, most=MOST_PIXELS)
    random_crop: bool = True  # false: always the centre
    # Positions of the crop in each direction: 33 in 2012; null: all.
    offsets: int | None = key(33, least=1, most=MOST_PIXELS)
    flip: bool = True
    # Consecutive images that share crop and flip: 32 in the 2012 code.
    images_per_draw: int = key(1, least=1, most=65536)
    # The mean image's central part whatever the crop (2012), or cropped as the image is.
    mean: str = key("central", choices=("central", "aligned"))
    # R, G, B in 0..255, instead of the mean image.
    mean_value: list[float] | None = key(None, least=0, most=255)
    std: list[float] = key(list(UNSCALED), least=1, most=255)  # of R, G, B in 0..255: divides what is left
    colour_noise: str = key("2012", choices=("none", "2012", "paper"))
    colour_noise_std: float = key(0.1, least=0, most=1000)  # of the factors alpha
    # Epochs with colour noise; null: all, or as the schedule says.
    colour_noise_epochs: float | None = key(None, least=0, most=MOST_EPOCHS)
    loader: str = key("auto", choices=("auto", "dali", "torch"))  # auto: DALI where it can be imported, else torch
    # A prepared set's images decoded once and kept: in a file that all processes map, or in each GPU's memory.
    cache: str = key("none", Role.SPEED, choices=("none", "host", "device"))


@has_role(Role.TRAINING)
@dataclass
class OptimConfig(Freezable):
    # The rate inside the velocity, as the paper has it, or torch.optim.SGD as it is.
    rule: str = key("paper", choices=("paper", "torch"))
    batch_size: int = key(128, least=1, most=65536)  # images per step and replica
    # Images per step of all replicas, in place of batch_size: stays what it is with fewer or more replicas.
    global_batch_size: int | None = key(None, least=1, most=2**30)
    learning_rate: float = key(0.01, least=0, most=MOST_FACTOR)
    momentum: float = key(0.9, least=0, below=1)
    weight_decay: float = key(5e-4, least=0, most=1e6)


@has_role(Role.TRAINING)
@dataclass
class ChangeConfig(Freezable):
    """A change that was made by hand after so many epochs; null leaves a value as it is."""

    epoch: float = key(MISSING, least=0, most=MOST_EPOCHS)  # of the recorded run
    # Learning rates as multiples of optim.learning_rate; 0 freezes.
    weights: float | None = key(None, least=0, most=MOST_FACTOR)
    biases: float | None = key(None, least=0, most=MOST_FACTOR)
    layers: list[str] = field(default_factory=list)  # none: all
    but: list[str] = field(default_factory=list)  # except these
    colour_noise: bool | None = key(None, choices=(False,))  # false: switched off


@has_role(Role.TRAINING)
@dataclass
class ScheduleConfig(Freezable):
    """When the learning rates change. A key with `rules` belongs to these rules, and under another one is refused.

    One class for four rules, because OmegaConf has no choice between classes by a value inside of them.
    """

    rule: str = key(MISSING, choices=("plateau", "fixed", "recorded", "exponential"))
    epochs: int = key(MISSING, least=1, most=MOST_EPOCHS)
    max_steps: int | None = key(None, least=1, most=MOST_STEPS)  # stop after so many steps, whatever the epoch
    divide_by: float = key(10.0, least=1, most=1000, rules=("plateau", "fixed"))
    # Epochs without a better validation error before a division. conf/schedule/plateau.yaml waits for 5; runs of
    # other rules have stored this default, and are compared by it.
    patience: int = key(3, least=1, most=MOST_EPOCHS, rules=("plateau",))
    max_drops: int = key(3, least=0, most=MOST_DROPS, rules=("plateau",))
    # Epochs after which the rate is divided.
    drop_epochs: list[int] = key([], least=0, most=MOST_EPOCHS, rules=("fixed",))
    # Epochs of the run of 2012; `changes` are scaled from these to `epochs`.
    recorded_epochs: float | None = key(None, least=0.001, most=MOST_EPOCHS, rules=("recorded", "exponential"))
    # Under `exponential` only freezing, and colour noise off.
    changes: list[ChangeConfig] = key([], rules=("recorded", "exponential"))
    # First rate / last rate of the weights.
    divide_over_run: float = key(250.0, least=1, most=MOST_FACTOR, rules=("exponential",))
    # Equal intervals of constant rate; null: lowered at every step.
    levels: int | None = key(4, least=2, most=MOST_STEPS, rules=("exponential",))
    bias_divide_over_run: float = key(10.0, least=1, most=MOST_FACTOR, rules=("exponential",))
    bias_levels: int | None = key(2, least=2, most=MOST_STEPS, rules=("exponential",))


@has_role(Role.TRAINING)
@dataclass
class InitialWeightsConfig(Freezable):
    path: str | None = None  # a run, a checkpoint or a file of weights; null: drawn at random
    layers: list[str] = field(default_factory=list)  # none: all, except a last layer for other classes
    swapped: list[str] = field(default_factory=list)  # of these, each tower takes what the other one had


@has_role(Role.RECORD)
@dataclass
class CheckpointConfig(Freezable):
    every_steps: int | None = key(None, least=1, most=MOST_STEPS)  # null: at the end of each epoch only
    keep: int = key(2, least=1, most=MOST_STEPS)  # of the last ones
    # trajectory: also, for good, before the first update, at powers of two within the first epoch, after each epoch.
    rule: str = key("last", choices=("last", "trajectory"))


@has_role(Role.RECORD)
@dataclass
class LoggingConfig(Freezable):
    every_steps: int = key(10, least=1, most=MOST_STEPS)
    # Steps between lines with the mean sizes of each layer's weights, updates and outputs.
    scales_every_steps: int = key(100, least=1, most=MOST_STEPS)
    # After so many steps at ln(classes) a loss is called stuck.
    stuck_after_steps: int = key(200, least=1, most=MOST_STEPS)
    # Where these are null, W&B's own environment variable counts, if there is one: see wandb_settings.py.
    wandb: str | None = key(None, choices=WANDB_MODES)  # null: WANDB_MODE, else offline
    wandb_checkpoints: str = key("none", choices=("none", "last", "all"))  # kept as artifacts, in copies: 0.5 GB each
    project: str | None = None  # null: WANDB_PROJECT, else twotower
    entity: str | None = None  # user or team; null: WANDB_ENTITY, else that of the key
    group: str | None = None  # null: WANDB_RUN_GROUP, else the sweep's name in a sweep, else the run's folder
    name: str | None = None  # of the W&B run; null: WANDB_NAME, else the run's folder
    tags: list[str] | None = None  # null: WANDB_TAGS, else none; network and ablation are always among them
    notes: str | None = key(None, has_lines=True)  # null: WANDB_NOTES
    system: str = key("auto", choices=YES_NO_AUTO)  # whether W&B watches GPU and memory; auto: where a GPU trains
    tensorboard: bool = False  # also, or instead: event files in RUN/tensorboard


@has_role(Role.SPEED)
@dataclass
class MachineConfig(Freezable):
    device: str = key("auto", choices=("auto", "cpu", "cuda"))
    transport: str = key("auto", choices=("auto", "gloo", "nccl", "shared_gpu", "pinned"))
    # Replicas of all towers, each in its own processes, that are started.
    replicas: int = key(1, Role.TRAINING, least=1, most=MOST_THREADS)
    # Whether the towers of a replica may be on two nodes, where every layer's exchange crosses the network.
    towers_apart: bool = False
    threads: int = key(0, least=0, most=MOST_THREADS)  # of torch per process; 0: cores / processes on this host
    loader_device: str = key("auto", Role.NUMBERS, choices=("auto", "cpu", "gpu"))  # where DALI decodes
    # Of the loader per process; 0: the process's share of the cores. Where DALI decodes on a GPU, 8 at most.
    loader_threads: int = key(0, least=0, most=MOST_THREADS)
    # Each tower decodes half of a batch, and they swap crops; auto: on CPUs and on two GPUs, not on one GPU.
    decode_once: str = key("auto", choices=YES_NO_AUTO)
    # fp32: IEEE everywhere; tf32: on GPUs from Ampere on; bf16: convolutions, products and what crosses in bfloat16.
    precision: str = key("fp32", Role.NUMBERS, choices=PRECISIONS)
    # Order of an image's values in memory; auto: nhwc on a CPU, on GPUs the faster one of both.
    memory_format: str = key("auto", choices=("auto", "nchw", "nhwc"))
    # ReLU, norms and pooling of a layer in one pass on a CPU; auto: where numba can be imported. Changes last digits.
    fused_steps: str = key("auto", choices=YES_NO_AUTO)
    timeout_seconds: float = key(60.0, least=1, most=86400)  # how long a tower waits for the other one
    check_every_steps: int = key(50, least=1, most=MOST_STEPS)  # how often the towers compare checksums of the pixels


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
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)
    seed: int = key(0, Role.SEED, least=0, most=2**63 - 1)
    name: str = key(MISSING, Role.NAME, names_files=True)  # of the run; the folder runs/<name>-<date> carries it
    ablation: str = "none"  # set by the yaml of the ablation
    run_dir: str | None = key(None, Role.PLACE)  # null: runs/<name>-<date>-<time>
    # None | auto (goes on where this run was interrupted) | a run or a checkpoint.
    resume: str = key("none", Role.PLACE)
    sweep_dir: str | None = key(None, Role.PLACE)  # null: sweeps/<name>-<what is swept>
    command: str | None = key(
        None, Role.RECORD, has_lines=True
    )  # what starts this run again; set by launch/two_gpu.py
