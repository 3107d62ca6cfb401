"""The training loop of one process: one tower, its half of every layer, the same images as the other tower.

Files -> feed -> tower <-> exchange -> loss -> update -> counts -> journal.
"""

import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from twotower.config import Config
from twotower.data.batch import Batch, Feed, Partner, Share, label_checksum, pixel_checksum
from twotower.data.dataset import DataSet
from twotower.data.feed import open_train, open_validation
from twotower.data.normalise import choose_mean
from twotower.data.order import steps_per_epoch
from twotower.distributed.exchange import Exchange, InProcessExchange, WireExchange
from twotower.distributed.world import World
from twotower.evaluation.metrics import Counts, count
from twotower.ground import words
from twotower.ground.memory import peak_megabytes
from twotower.model.table import count_parameters
from twotower.model.tower import Tower, forward
from twotower.runs import checkpoint
from twotower.runs.journal import Journal
from twotower.runs.mirrors.training_pictures import Handful, cut_centre, draw_kernels, first_kernels
from twotower.training.optim import VelocitySGD
from twotower.training.scales import OutputScales, as_values, measure
from twotower.training.schedule import Rates, Schedule
from twotower.training.stuck import StuckLoss
from twotower.weights.transfer import Inheritance, inherit


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or NaN."""


@dataclass
class Window:
    """The steps since the last line of the journal."""

    sums: Counts = field(default_factory=Counts.zero)
    pending: list[Tensor] = field(default_factory=list)  # counts of single steps, still on the device
    began: float = field(default_factory=time.perf_counter)
    steps: int = 0
    bytes_sent: int = 0
    input_seconds: float = 0.0  # spent waiting for the feed


def identity(config: Config, world_replicas: int, dataset: DataSet) -> dict[str, Any]:
    """Collects what must be the same for a run to go on as if it had not been stopped."""
    # These schedules scale with the run's length; another length on resume would move changes that were already made.
    scaled = (
        {"schedule.epochs": config.schedule.epochs} if config.schedule.rule in ("recorded", "exponential") else {}
    )
    return {
        "seed": config.seed,
        "global_batch_size": config.optim.batch_size * world_replicas,
        "num_train": len(dataset.train),
        "num_val": len(dataset.val),
        **scaled,
    }


def total_steps(config: Config, steps_per_epoch: int) -> int:
    """The number of updates after which a run is finished."""
    whole = config.schedule.epochs * steps_per_epoch
    return whole if config.schedule.max_steps is None else min(whole, config.schedule.max_steps)


class Trainer:
    """One process's part of a run.

    Args:
        dataset: prepared, the same in all processes.
        run_dir: exists; only rank 0 and the checkpoints of replica 0 write there.
        resume_from: a checkpoint that was checked to fit, or None.
    """

    def __init__(
        self, config: Config, world: World, dataset: DataSet, run_dir: Path, resume_from: Path | None
    ) -> None:
        self.config, self.world, self.dataset, self.run_dir = config, world, dataset, run_dir
        optim, num_classes = config.optim, len(dataset.classes)
        tower = Tower(config.network, num_classes, world.tower, config.seed)
        self.inheritance: Inheritance | None = None
        if resume_from is None:
            self.inheritance = inherit(
                config.initial_weights, config.network, dataset.classes, tower, config.input.std
            )
        self.tower = tower.on(world.device, world.memory_format)
        precision = config.network.exchange_precision
        self.exchange: Exchange = InProcessExchange(precision)
        if world.num_towers == 2:
            self.exchange = WireExchange(world.link, world.tower, tower.rows[-1].kernels, precision)
        self.optimiser = VelocitySGD(
            self.tower.paper_named_parameters(),
            optim.momentum,
            optim.weight_decay,
            config.network.bias_rate,
            config.network.bias_decay,
            optim.rule,
        )
        self.share = Share(
            optim.batch_size,
            world.replica,
            world.num_replicas,
            world.device,
            threads=config.machine.loader_threads or world.threads,
            partner=self._partner(),
            loader_device=config.machine.loader_device,
        )
        self.schedule = Schedule(config.schedule, optim.learning_rate, config.network)
        self.rates: Rates | None = None  # rates of the last step
        noise_epochs = config.input.colour_noise_epochs
        self.input = replace(
            config.input,
            colour_noise_epochs=self.schedule.noise_epochs if noise_epochs is None else noise_epochs,
        )
        self.stuck = StuckLoss(len(dataset.classes), config.logging.stuck_after_steps)
        self.steps_per_epoch = steps_per_epoch(len(dataset.train), optim.batch_size, world.num_replicas)
        self.total_steps = total_steps(config, self.steps_per_epoch)
        self.step = 0
        self.window, self.epoch_sums = Window(bytes_sent=world.link.bytes_sent), Counts.zero()
        self.best: dict[str, float] = {"best_top1_error": math.inf, "best_top5_error": math.inf}
        self.last: dict[str, float] = {}
        self.seconds, self.images = 0.0, 0  # spent in training alone, over all parts of a resumed run
        if resume_from is not None:
            self._resume(resume_from)
        self.first_step = self.step

    def _partner(self) -> Partner | None:
        """The other tower where decoding is shared with it. On a CPU that was measured to be faster."""
        choice = self.config.machine.decode_once
        shared = self.world.device.type == "cpu" if choice == "auto" else choice == "yes"
        return self.world.link if shared and self.world.num_towers == 2 else None

    @property
    def checkpoints(self) -> Path:
        return self.run_dir / "checkpoints"

    def _resume(self, path: Path) -> None:
        manifest = checkpoint.read_manifest(path)  # which was verified before the processes started
        buffers = checkpoint.load_tower(path, self.tower)
        self.optimiser.load_state(buffers, manifest.rates)
        self.schedule.load_state(manifest.schedule)
        self.step = manifest.step
        progress = manifest.progress
        self.window.sums = Counts(torch.tensor(progress["window"], dtype=torch.float64))
        self.epoch_sums = Counts(torch.tensor(progress["epoch"], dtype=torch.float64))
        self.best = {key: math.inf if value is None else value for key, value in progress["best"].items()}
        self.last, self.seconds, self.images = progress["last"], progress["seconds"], progress["images"]
        self.stuck.is_watching = progress["watching_loss"]

    def save(self) -> None:
        """Writes a checkpoint of the present step, with both towers' part; replica 0 does it for all."""
        self._settle()
        buffers, rates = self.optimiser.state()
        if self.world.replica == 0:
            checkpoint.save_tower(self.checkpoints, self.step, self.tower, buffers)
            self.world.link.check_in([self.step])
        if self.world.is_first:
            best = {key: None if math.isinf(value) else value for key, value in self.best.items()}
            progress = {
                "window": self.window.sums.sums.tolist(),
                "epoch": self.epoch_sums.sums.tolist(),
                "best": best,
                "last": self.last,
                "seconds": self.seconds + time.perf_counter() - self.window.began,
                "images": self.images + self.window.steps * self.global_batch,
                "watching_loss": self.stuck.is_watching,
            }
            manifest = checkpoint.Manifest(
                self.step,
                asdict(self.config.network),
                self.dataset.classes,
                rates,
                self.schedule.state(),
                progress,
                identity(self.config, self.world.num_replicas, self.dataset),
                {},
                checkpoint.scale_of(self.config.input),
            )
            checkpoint.complete(self.checkpoints, manifest, self.config.checkpoint.keep)
        self.world.barrier()

    @property
    def global_batch(self) -> int:
        return self.config.optim.batch_size * self.world.num_replicas

    def _next_batch(self, feed: Feed) -> Batch:
        began = time.perf_counter()
        batch = next(feed)
        self.window.input_seconds += time.perf_counter() - began
        return batch

    def _follow_schedule(self, journal: Journal | None) -> None:
        rates = self.schedule.rates(self.step / self.steps_per_epoch)
        if rates != self.rates:
            if journal is not None and self.schedule.is_by_layer:
                journal.event("rates", self.step, weights=dict(rates.weights), biases=dict(rates.biases))
                journal.say(f"from step {self.step} on, rates: {rates.describe()}")
            self.optimiser.set_rates(rates.weights, rates.biases)
            # The backward pass stops above frozen layers, as in 2012 (layer.py:744).
            self.tower.freeze(rates.frozen)
            self.rates = rates
        last = self.input.colour_noise_epochs
        if journal is not None and last is not None and self.step == math.ceil(last * self.steps_per_epoch):
            journal.say(f"from step {self.step} on, no colour noise")

    def train_step(self, batch: Batch) -> None:
        """One update of this tower from one batch; the other tower does the same on the same batch."""
        world, size = self.world, self.config.optim.batch_size
        numbers = {"the labels' checksum": label_checksum(batch)}
        if (self.step - self.first_step) % self.config.machine.check_every_steps == 0:
            numbers["the pixels' checksum"] = pixel_checksum(batch)
        world.check_alike(self.step, **numbers)

        self.tower.train()
        self.tower.at_step(self.step, slice(world.replica * size, (world.replica + 1) * size), self.global_batch)
        images = batch.images.contiguous(memory_format=world.memory_format)
        log_probabilities = F.log_softmax(forward([self.tower], images, self.exchange), dim=1)
        loss = F.nll_loss(log_probabilities, batch.labels)
        # The mean over all replicas' images is the mean of their means, because all batches have one size.
        if loss.requires_grad:  # false if all layers are frozen
            (loss / world.num_replicas).backward()
        world.sum_over_replicas(p.grad for p in self.tower.parameters() if p.grad is not None)
        self.optimiser.step()

        self.window.pending.append(count(log_probabilities.detach(), batch.labels))
        self.window.steps += 1
        self.step += 1

    def _measured_step(self, batch: Batch, journal: Journal | None) -> None:
        """A step that leaves a line with the scales of each layer in each tower."""
        with OutputScales(self.tower) as outputs:
            self.train_step(batch)
        scales = measure(self.tower, self.optimiser, outputs)
        # Rank 0 writes for its replica; the others have the same weights.
        every = self.world.gather(scales)[: self.world.num_towers]
        if journal is not None:
            journal.event("scales", self.step, **as_values(every, self.optimiser.layers))

    def _settle(self) -> None:
        """Adds up the counts of the steps since the last time, over all replicas.

        Raises: NonFiniteLossError naming the step, in all processes alike.
        """
        if not self.window.pending:
            return
        steps = torch.stack(self.window.pending).cpu()
        self.window.pending.clear()
        self.world.sum_over_replicas([steps])
        for row, sums in enumerate(steps):
            if not torch.isfinite(sums[1]):
                step = self.step - len(steps) + row
                finite = f"The last loss was {float(steps[row - 1, 1] / steps[row - 1, 0]):.4g}. " if row else ""
                raise NonFiniteLossError(
                    f"The loss is {float(sums[1] / sums[0])} at step {step}. {finite}A lower optim.learning_rate "
                    f"than {self.config.optim.learning_rate:g} often helps."
                )
            self.window.sums.sums = self.window.sums.sums + sums

    def report(self, journal: Journal | None) -> None:
        """Closes the window of steps: one `train` line in the journal."""
        self._settle()
        link, window = self.world.link, self.window
        waited_ms = link.read_waited_ms()
        seconds = time.perf_counter() - window.began
        values = {
            "epoch": self.step / self.steps_per_epoch,
            "loss": window.sums.loss,
            "top1_error": window.sums.top1_error,
            "top5_error": window.sums.top5_error,
            "images_per_second": window.steps * self.global_batch / seconds,
            "exchange_wait_ms": waited_ms / window.steps,
            "input_wait_ms": window.input_seconds * 1e3 / window.steps,
            "exchange_bytes": (link.bytes_sent - window.bytes_sent) / window.steps,
            "learning_rate": self.rates.highest if self.rates is not None else 0.0,
        }
        self.seconds += seconds
        self.images += window.steps * self.global_batch
        self.epoch_sums.add(window.sums)
        self.window = Window(bytes_sent=link.bytes_sent)
        notice = self.stuck.look(self.step, values["loss"])
        if journal is not None:
            journal.event("train", self.step, **values)
            journal.show_training(self.step, values)
            if notice is not None:
                journal.event("notice", self.step, text=notice)
                journal.say(notice)

    def _handful(self) -> Handful | None:
        """To pick some of this replica's validation images; None for data without images."""
        dataset = self.dataset
        if dataset.mean_image is None:
            return None
        given = self.config.input
        mean = cut_centre(choose_mean(dataset.mean_image, given), given.crop_size)
        return Handful(len(dataset.val) // self.world.num_replicas, dataset.classes, mean, given.std)

    @torch.no_grad()
    def validate(self, handful: Handful | None = None) -> Counts:
        """Exact counts over the whole validation set; the replicas share it. `handful` picks from what passes."""
        world = self.world
        self.tower.eval()
        sums = torch.zeros(4, dtype=torch.float64, device=world.device)
        feed = open_validation(self.dataset, self.config.input, self.share)
        try:
            for batch in feed:
                images = batch.images.contiguous(memory_format=world.memory_format)
                log_probabilities = F.log_softmax(forward([self.tower], images, self.exchange), dim=1)
                sums += count(log_probabilities, batch.labels)
                if handful is not None:
                    handful.look(batch, log_probabilities)
        finally:
            feed.close()
        counts = Counts(sums.cpu())
        world.sum_over_replicas([counts.sums])
        return counts

    def end_epoch(self, journal: Journal | None) -> None:
        """Validates, tells the schedule, and leaves a line."""
        began = time.perf_counter()
        handful = self._handful() if journal is not None and journal.mirror is not None else None
        counts, trained = self.validate(handful), self.epoch_sums
        seconds = time.perf_counter() - began
        self.world.link.read_waited_ms()
        epochs_done = self.step / self.steps_per_epoch
        self.last = {"loss": counts.loss, "top1_error": counts.top1_error, "top5_error": counts.top5_error}
        for key in ("top1_error", "top5_error"):
            self.best[f"best_{key}"] = min(self.best[f"best_{key}"], self.last[key])
        self.schedule.end_epoch(math.floor(epochs_done), counts.top1_error)
        after = self.schedule.rates(epochs_done)
        self.epoch_sums = Counts.zero()
        peak = torch.tensor([peak_megabytes(self.world.device)], dtype=torch.float64)
        peaks = self.world.gather(peak)[: self.world.num_towers]
        # All processes must call this, whichever of them has a dashboard.
        kernels = self.world.gather(first_kernels(self.tower))[: self.world.num_towers]
        if journal is not None and journal.mirror is not None:
            if kernels[0].numel():
                journal.mirror.kernels(self.step, draw_kernels(kernels))
            if handful is not None:
                journal.mirror.predictions(self.step, handful.found)
        if journal is not None:
            journal.event("memory", self.step, **{f"tower{t}": float(one) for t, one in enumerate(peaks)})
            per_second = counts.num_images / seconds
            journal.event("validation", self.step, epoch=epochs_done, **self.last, images_per_second=per_second)
            rate = (self.rates or after).describe_weights()
            dropped = f"; now {after.describe_weights()}" if after.describe_weights() != rate else ""
            frozen = f"  frozen: {', '.join(sorted(after.frozen))}" if after.frozen else ""
            journal.say(
                f"epoch {words.epochs_done(epochs_done)}  step {self.step}  train loss {trained.loss:.3f} "
                f"top-1 {trained.top1_error:.1f} %  |  validation loss {counts.loss:.3f} "
                f"top-1 {counts.top1_error:.2f} %  top-5 {counts.top5_error:.2f} %  |  rate {rate}{dropped}{frozen}"
            )
        self.window = Window(bytes_sent=self.world.link.bytes_sent)

    def run(self, journal: Journal | None) -> dict[str, Any]:
        """Trains from the present step to the last one. Returns what summary.json holds."""
        config = self.config
        feed = open_train(self.dataset, self.input, self.share, seed=config.seed, first_step=self.step)
        self.window.began = time.perf_counter()
        try:
            while self.step < self.total_steps:
                self._follow_schedule(journal)
                step = self.step + 1
                ends_epoch = step % self.steps_per_epoch == 0 or step == self.total_steps
                if ends_epoch or step % config.logging.scales_every_steps == 0:
                    self._measured_step(self._next_batch(feed), journal)
                else:
                    self.train_step(self._next_batch(feed))
                if ends_epoch or self.step % config.logging.every_steps == 0:
                    self.report(journal)
                if ends_epoch:
                    self.end_epoch(journal)
                every = config.checkpoint.every_steps
                if ends_epoch or (every is not None and self.step % every == 0):
                    self.save()
                    if journal is not None and journal.mirror is not None:
                        path = checkpoint.place(self.checkpoints, self.step)
                        journal.mirror.checkpoint(path, self.step, is_last=self.step == self.total_steps)
        finally:
            feed.close()
        return {
            **self.last,
            **self.best,
            "images_per_second": self.images / max(self.seconds, 1e-9),
            "steps": self.step,
            "epochs": self.step / self.steps_per_epoch,
            "seconds": self.seconds,
            "num_parameters": count_parameters(self.tower.rows),
            "num_classes": len(self.dataset.classes),
        }
