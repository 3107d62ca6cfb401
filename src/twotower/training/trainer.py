"""The training loop of one process: one tower, its half of every layer, the same images as the other tower.

Files -> feed -> tower <-> exchange -> loss -> update -> counts -> journal.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twotower.config import Config
from twotower.data.batch import Batch, Feed, Partner, Share, pixel_checksum
from twotower.data.dataset import DataSet
from twotower.data.feed import open_train
from twotower.data.order import steps_per_epoch
from twotower.distributed.exchange import Exchange, InProcessExchange, WireExchange
from twotower.distributed.world import World
from twotower.evaluation.metrics import Counts, count
from twotower.ground import wording
from twotower.ground.memory import peak_megabytes
from twotower.model.fused_steps import choose_fused
from twotower.model.layer_table import count_parameters
from twotower.model.tower import Tower, forward
from twotower.runs import checkpoint
from twotower.runs.journal import FolderGoneError, SilentJournal
from twotower.runs.mirrors.training_pictures import Handful, draw_kernels, first_kernels
from twotower.training.energy_use import RunEnergy
from twotower.training.identity import count_steps, identify
from twotower.training.layer_scales import OutputScales, as_values, measure
from twotower.training.optim import VelocitySGD
from twotower.training.progress import Progress, Window, describe_errors
from twotower.training.schedule import Rates, Schedule
from twotower.training.stuck_loss import StuckLoss
from twotower.training.validation import open_handful, validate
from twotower.weights.transfer import Inheritance, inherit


class ToldElsewhereError(RuntimeError):
    """Another process has failed in what all do together, and says why."""


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or NaN."""


def describe_epoch(epochs_done: float, step: int, trained: Counts, validation: Counts, rates: str) -> str:
    """The line that an epoch leaves on the screen."""
    return (
        f"epoch {wording.epochs_done(epochs_done)}  step {step}  train loss {trained.loss:.3f} "
        f"top-1 error {trained.top1_error:.1f} %  |  validation loss {validation.loss:.3f} "
        f"top-1 error {validation.top1_error:.2f} %  top-5 error {validation.top5_error:.2f} %  |  rate {rates}"
    )


class TowerOfReplica(nn.Module):
    """One tower and its way to the other one, as a module: images [B, 3, H, W] -> logits [B, classes]."""

    def __init__(self, tower: Tower, exchange: Exchange) -> None:
        super().__init__()
        self.tower, self.exchange = tower, exchange
        # DistributedDataParallel is told to look for parameters without a gradient, and warns where it finds none.
        self.never_used = nn.Parameter(torch.zeros(1, device=next(tower.parameters()).device))

    def forward(self, images: Tensor) -> Tensor:
        return forward([self.tower], images, self.exchange)


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
        if resume_from is None and world.replica == 0:
            self.inheritance = inherit(
                config.initial_weights, config.network, dataset.classes, tower, config.input.std
            )
        if resume_from is None and config.initial_weights.path is not None:
            world.copy_from_first_replica(tower.paper_named_parameters().values())
        self.tower = tower.on(world.device, world.memory_format)
        self.tower.precision = config.machine.precision
        self.tower.fuse_steps(choose_fused(config.machine.fused_steps), overwrite=True)
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
            config.network.layer_decays(),
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
        self.total_steps = count_steps(config, self.steps_per_epoch)
        self.step = 0
        self.energy = RunEnergy(world, run_dir)
        self.window, self.progress = Window(bytes_sent=world.link.bytes_sent), Progress()
        if resume_from is not None:
            self._resume(resume_from)
        self.first_step = self.step
        self._replicated: nn.Module | None = None  # made for the layers that are trained at present
        self._pixels: tuple[int, Callable[[], int]] | None = None  # of a step before, not compared yet

    def _partner(self) -> Partner | None:
        """The other tower where decoding is shared with it.

        On a CPU that was measured to be faster. On two GPUs it is needed: their decoders may differ in single bits,
        and the towers must see the same images. On one GPU both decode alike.
        """
        choice = self.config.machine.decode_once
        shared = self.world.transport in ("gloo", "nccl") if choice == "auto" else choice == "yes"
        return self.world.link if shared and self.world.num_towers == 2 else None

    @property
    def checkpoints(self) -> Path:
        return self.run_dir / "checkpoints"

    def _stays(self, step: int) -> bool:
        """Whether the checkpoint of a step is kept for good."""
        is_wanted = self.config.checkpoint.rule == "trajectory"
        return is_wanted and checkpoint.is_of_trajectory(step, self.steps_per_epoch)

    def _resume(self, path: Path) -> None:
        """Replica 0 reads the checkpoint, and the others get from it what they need: they may be on other disks."""

        manifest = checkpoint.Manifest(
            **json.loads(
                # It was verified before the processes started.
                self.world.from_first("manifest", lambda: json.dumps(asdict(checkpoint.read_manifest(path))))
            )
        )
        parameters = self.tower.paper_named_parameters()
        buffers = checkpoint.load_tower(path, self.tower) if self.world.replica == 0 else {}
        has_moved = torch.tensor([float(name in buffers) for name in parameters])
        self.world.copy_from_first_replica([*parameters.values(), has_moved])
        for moved, (name, parameter) in zip(has_moved.tolist(), parameters.items(), strict=True):
            if moved:
                buffer = buffers.get(name, torch.empty_like(parameter.detach(), device="cpu"))
                self.world.copy_from_first_replica([buffer])
                buffers[name] = buffer
        self.optimiser.load_state(buffers, manifest.rates)
        self.schedule.load_state(manifest.schedule)
        self.step = manifest.step
        self.progress = Progress.from_json(manifest.progress)
        self.window.sums = Counts(torch.tensor(manifest.progress["window"], dtype=torch.float64))
        self.stuck.is_watching = manifest.progress["watching_loss"]
        self.energy.go_on(manifest.progress.get("energy", {}))

    def save(self, journal: SilentJournal) -> None:
        """Writes a checkpoint of the present step, with both towers' part; replica 0 does it for all.

        Raises: TowersDifferError rather than keep what was trained on different images; in the process that it comes
            from the OSError of a full disk or of a folder that is gone, and ToldElsewhereError in the others.
        """
        self._finish_checks()
        self._settle()
        self.world.catch_up()
        buffers, rates = self.optimiser.state()
        energy = self.energy.gather()

        def save_tower() -> None:
            if self.world.replica == 0:
                self.checkpoints.mkdir(exist_ok=True)  # and not the run's folder, which may have been removed
                checkpoint.save_tower(self.checkpoints, self.step, self.tower, buffers)

        def complete() -> None:
            if not self.world.is_first:
                return
            manifest = checkpoint.Manifest(
                step=self.step,
                network=asdict(self.config.network),
                classes=self.dataset.classes,
                rates=rates,
                schedule=self.schedule.state(),
                progress=self.progress.to_json(self.window, self.global_batch, self.stuck.is_watching)
                | {"energy": asdict(energy)},
                identity=identify(self.config, self.world.num_replicas, self.dataset),
                sha256={},
                input=checkpoint.read_scale(self.config.input),
            )
            checkpoint.complete(self.checkpoints, manifest, self.config.checkpoint.keep, self._stays)
            self.energy.keep(journal, energy)

        self._together(journal.check_folder)
        try:
            self._together(save_tower)
            self._together(complete)
        except FileNotFoundError as error:  # the folder went at this very moment
            raise FolderGoneError.of(self.run_dir, "the checkpoint that was being written") from error
        except OSError:
            checkpoint.forget_pending(self.checkpoints)
            raise

    def _together(self, work: Callable[[], None]) -> None:
        """Does something that may fail in some processes, and ends in all of them if it did in one.

        Raises: OSError in the first process in which it failed, ToldElsewhereError in the others.
        """
        failure: OSError | None = None
        try:
            work()
        except OSError as error:
            failure = error
        flags = self.world.gather(torch.tensor([float(failure is not None)], dtype=torch.float64))
        failed = [rank for rank, flag in enumerate(flags) if float(flag)]
        if failure is not None and failed[0] == self.world.rank:
            raise failure
        if failed:
            raise ToldElsewhereError(f"Rank {failed[0]} has failed, and says why.")

    @property
    def global_batch(self) -> int:
        return self.config.optim.batch_size * self.world.num_replicas

    def _next_batch(self, feed: Feed) -> Batch:
        began = time.perf_counter()
        batch = next(feed)
        self.window.input_seconds += time.perf_counter() - began
        return batch

    def _follow_schedule(self, journal: SilentJournal) -> None:
        rates = self.schedule.rates(self.step / self.steps_per_epoch)
        if rates != self.rates:
            if self.schedule.is_by_layer:
                journal.event("rates", self.step, weights=dict(rates.weights), biases=dict(rates.biases))
                journal.say(f"from step {self.step} on, rates: {rates.describe()}")
            self.optimiser.set_rates(rates.weights, rates.biases)
            # The backward pass stops above frozen layers, as in 2012 (layer.py:744).
            self.tower.freeze(rates.frozen)
            self._replicated = None
            self.rates = rates
        last = self.input.colour_noise_epochs
        if last is not None and self.step == math.ceil(last * self.steps_per_epoch):
            journal.say(f"from step {self.step} on, no colour noise")

    def train_step(self, batch: Batch) -> None:
        """One update of this tower from one batch; the other tower does the same on the same batch."""
        world, size = self.world, self.config.optim.batch_size
        self._finish_checks()
        alike = {"the labels' checksum": batch.label_checksum, "the checksum of the swaps": world.link.swaps_checksum}
        world.post_check(self.step, alike)
        if (self.step - self.first_step) % self.config.machine.check_every_steps == 0:
            self._pixels = (self.step, world.read_later(pixel_checksum(batch)))

        self.tower.train()
        self.tower.at_step(self.step, slice(world.replica * size, (world.replica + 1) * size), self.global_batch)
        images = batch.images.contiguous(memory_format=world.memory_format)
        log_probabilities = F.log_softmax(self._network()(images), dim=1)
        loss = F.nll_loss(log_probabilities, batch.labels)
        # The mean over all replicas' images is the mean of their means, because all batches have one size.
        if loss.requires_grad:  # false if all layers are frozen
            world.go_backward(loss)
        self.optimiser.step()

        self.window.pending.append(count(log_probabilities.detach(), batch.labels))
        self.window.steps += 1
        self.step += 1
        world.end_step()

    def _network(self) -> nn.Module:
        """This tower in its replica; with several replicas its gradients become those of all."""
        if self._replicated is None:
            network: nn.Module = TowerOfReplica(self.tower, self.exchange)
            is_trained = any(parameter.requires_grad for parameter in self.tower.parameters())
            self._replicated = self.world.share_gradients(network) if is_trained else network
        return self._replicated

    def _finish_checks(self) -> None:
        """Compares what the towers saw in the steps before; numbers that are under way meanwhile cost no time.

        Raises: TowersDifferError, TowerLostError.
        """
        if self._pixels is not None:
            (step, read), self._pixels = self._pixels, None
            self.world.post_check(step, {"the pixels' checksum": read()})
        self.world.finish_checks()

    def _measured_step(self, batch: Batch, journal: SilentJournal) -> None:
        """A step that leaves a line with the scales of each layer in each tower."""
        with OutputScales(self.tower) as outputs:
            self.train_step(batch)
        self.world.catch_up()
        scales = measure(self.tower, self.optimiser, outputs)
        # Rank 0 writes for its replica; the others have the same weights.
        towers = self.world.gather(scales)[: self.world.num_towers]
        journal.event("scales", self.step, **as_values(towers, self.optimiser.layers))

    def _settle(self) -> None:
        """Adds up the counts of the steps since the last time, over all replicas.

        Raises: NonFiniteLossError naming the step, in all processes alike.
        """
        if not self.window.pending:
            return
        self.world.catch_up()
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

    def report(self, journal: SilentJournal) -> None:
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
        self.progress.close_window(window, seconds, window.steps * self.global_batch)
        self.window = Window(bytes_sent=link.bytes_sent)
        notice = self.stuck.look(self.step, values["loss"])
        journal.event("train", self.step, **values)
        journal.show_training(self.step, values)
        self.energy.note(journal)
        if notice is not None:
            journal.event("notice", self.step, text=notice)
            journal.say(notice)

    def end_epoch(self, journal: SilentJournal) -> None:
        """Validates, lets the schedule know, and leaves a line. Raises: NonFiniteLossError."""
        began = time.perf_counter()
        dataset, world = self.dataset, self.world
        handful = open_handful(dataset, self.config.input, world.num_replicas) if journal.mirrors.open else None
        counts = validate(self.tower, self.exchange, world, dataset, self.config.input, self.share, handful)
        self._check_finite(counts.loss)
        trained = self.progress.epoch
        seconds = time.perf_counter() - began
        self.world.link.read_waited_ms()
        epochs_done = self.step / self.steps_per_epoch
        self.progress.end_epoch(counts)
        self.schedule.end_epoch(math.floor(epochs_done), counts.top1_error)
        self._show_towers(journal, handful)
        values = {**self.progress.last, "images_per_second": counts.num_images / seconds}
        journal.event("validation", self.step, epoch=epochs_done, **values)
        journal.say(describe_epoch(epochs_done, self.step, trained, counts, self._describe_rates(epochs_done)))
        self.window = Window(bytes_sent=self.world.link.bytes_sent)

    def look_within_epoch(self, journal: SilentJournal) -> None:
        """Validates for a checkpoint of the trajectory that no epoch ends with. Raises: NonFiniteLossError.

        Neither the schedule nor the lowest errors take note of it.
        """
        if self.window.steps:
            self.report(journal)
        counts = validate(self.tower, self.exchange, self.world, self.dataset, self.config.input, self.share)
        self._check_finite(counts.loss)
        self.world.link.read_waited_ms()
        self.progress.last = describe_errors(counts)
        journal.event("trajectory", self.step, epoch=self.step / self.steps_per_epoch, **self.progress.last)
        self.window = Window(bytes_sent=self.world.link.bytes_sent)

    def _save_and_show(self, journal: SilentJournal) -> None:
        self.save(journal)
        path = checkpoint.place(self.checkpoints, self.step)
        journal.mirrors.checkpoint(path, self.step, is_last=self.step == self.total_steps)

    def _check_finite(self, validation_loss: float) -> None:
        """Raises: NonFiniteLossError in all processes alike, if the last validation shows that weights are ruined.

        The last update of a run has no training loss behind it that would tell.
        """
        if not math.isfinite(validation_loss):
            raise NonFiniteLossError(
                f"The validation loss is {validation_loss} after step {self.step}. A lower optim.learning_rate than "
                f"{self.config.optim.learning_rate:g} often helps."
            )

    def _show_towers(self, journal: SilentJournal, handful: Handful | None) -> None:
        """Records each tower's memory and shows its first kernels, which all processes send, journal or not."""
        peak = torch.tensor([peak_megabytes(self.world.device)], dtype=torch.float64)
        peaks = self.world.gather(peak)[: self.world.num_towers]
        kernels = self.world.gather(first_kernels(self.tower))[: self.world.num_towers]
        if journal.mirrors.open and kernels[0].numel():
            journal.mirrors.kernels(self.step, draw_kernels(kernels))
        if handful is not None:
            journal.mirrors.predictions(self.step, handful.predictions)
        journal.event("memory", self.step, **{f"tower{tower}": float(peak) for tower, peak in enumerate(peaks)})

    def _describe_rates(self, epochs_done: float) -> str:
        """The rates of the epoch that ends, those of the next one where they differ, and the frozen layers."""
        after = self.schedule.rates(epochs_done)
        rate, next_rate = (self.rates or after).describe_weights(), after.describe_weights()
        dropped = f"; now {next_rate}" if next_rate != rate else ""
        return f"{rate}{dropped}" + (f"  frozen: {', '.join(sorted(after.frozen))}" if after.frozen else "")

    def run(self, journal: SilentJournal) -> dict[str, Any]:
        """Trains from the present step to the last one. Returns what summary.json holds, all numbers finite.

        Raises: NonFiniteLossError, TowersDifferError, TowerLostError.
        """
        config = self.config
        feed = open_train(self.dataset, self.input, self.share, seed=config.seed, first_step=self.step)
        self.energy.start(config.machine)
        if self.energy.notice is not None:
            journal.say(self.energy.notice)
        self.window.began = time.perf_counter()
        try:
            if self.step == 0 and self._stays(0):
                self.look_within_epoch(journal)
                self._save_and_show(journal)
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
                elif self._stays(self.step):
                    self.look_within_epoch(journal)
                every = config.checkpoint.every_steps
                if ends_epoch or self._stays(self.step) or (every is not None and self.step % every == 0):
                    self._save_and_show(journal)
            energy = self.energy.gather()
        finally:
            self.energy.stop()
            feed.close()
        self._check_finite(self.progress.last["loss"])  # of a run that had nothing left to do
        self.energy.keep(journal, energy)
        return {
            **self.progress.last,
            **self.progress.best,
            "images_per_second": self.progress.images / max(self.progress.seconds, 1e-9),
            "steps": self.step,
            "epochs": self.step / self.steps_per_epoch,
            "seconds": self.progress.seconds,
            **energy.summary(),
            "num_parameters": count_parameters(self.tower.rows),
            "num_classes": len(self.dataset.classes),
        }
