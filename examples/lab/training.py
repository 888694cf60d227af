# SPDX-License-Identifier: MIT
"""A run: a model trained from its settings, its curves, and where it stands in between."""

import contextlib
import functools
import json
import math
import statistics

import torch
import torch.nn.functional as F

import emanest

from . import building, data, models
from .numbers import rounded
from .parallel import ParallelError, World, distribute, inside
from .probe import Probe
from .settings import SettingsError, checked

STATISTICS_BATCHES = 20  # for the statistics of normalisation at x


@functools.lru_cache(maxsize=4)
def _loaded(text):
    return data.load(json.loads(text))


def loaded(settings):
    """The data of a run; runs of one process share them."""
    return _loaded(json.dumps(settings["data"], sort_keys=True))


def loss_of(logits, targets):
    """Mean cross-entropy in nats, of words and of images alike."""
    return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten())


def _check_vocabulary(name, model, text):
    """Raise where the text has values that the model has no embedding of."""
    embedding = getattr(model, "embed", None)
    wanted = getattr(text, "vocabulary", 0)
    if embedding is not None and embedding.num_embeddings < wanted:
        raise SettingsError(
            f"model {name} has a vocabulary of {embedding.num_embeddings:,}, and {text.name} one "
            f"of {wanted:,}: give the model more, or data of another tokenizer"
        )


class Run:
    """One optimizer on one model, from its settings to its result.

    On a CPU the result follows from the settings, the processor and the versions of torch and
    emanest alone: every batch follows from the seed and the number of the step.

    Args:
        settings: see settings.ENTRIES.
        world: the processes that train it together; None: this one, on the CPU.
        how: they do so, a row of ``parallel.WAYS``.
        compiled: whether blocks of the model are compiled.
        model: that of the settings, there already with its first weights; None: it is made.

    Attributes:
        step: steps taken.
        curves: what ``result`` has, so far.
    """

    def __init__(self, settings, world=None, how="none", compiled=False, model=None):
        self.settings = settings = checked(settings)
        if settings.get("probe") and how == "fsdp2":
            # its weights are shards that are gathered inside the model: others are not seen
            raise ParallelError("probe: not with how='fsdp2', choose ddp or one process")
        self.world = world or World(0, 1, torch.device("cpu"))
        self.data = loaded(settings)
        if model is None:
            model = models.make(settings["model"], settings["seed"])
        if compiled:
            models.compile_blocks(model)
        _check_vocabulary(settings["model"]["name"], model, self.data)
        self.statistics = getattr(model, "statistics", False)
        self.parameters = sum(p.numel() for p in model.parameters())
        self.model = distribute(model, how, self.world)
        self.optimizer = building.optimizer(settings, inside(self.model))
        self.scheduler = building.scheduler(settings, self.optimizer)
        self.feed = self.data.batches(seed=settings["seed"], **settings["feed"])
        batches = self.data.validation_batches(**settings["validation"])
        self.held_out = [self.world.share(*batch) for batch in batches]
        self.probe = Probe(self) if settings.get("probe") else None
        self.step = 0
        self.curves = {"steps": [], "loss": [], "train": []}
        if hasattr(self.data, "classes"):
            self.curves["accuracy"] = []
        if self.probe:
            self.curves["probes"] = []
        self.diverged = None
        # losses of steps since the last evaluation: reading one would wait for the device
        self._unread = []
        self.every = math.ceil(settings["steps"] / settings["evaluations"])
        self._evaluate()

    @property
    def done(self):
        return self.diverged is not None or self.step == self.settings["steps"]

    def advance(self):
        """Take one step, and evaluate after it where that is due."""
        self.take_step()
        if self.step % self.every == 0 or self.step == self.settings["steps"]:
            self._evaluate()

    def take_step(self):
        self.mark("begin")
        if self.probe:
            self.probe.before_step()
        self.optimizer.zero_grad()
        self._unread.append(self._backward())
        if self.settings.get("clip"):
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings["clip"])
        self.mark("optimizer")
        self.optimizer.step()
        self.mark("end")
        self.scheduler.step()
        self.step += 1

    def mark(self, moment):
        """For who times steps: told when each begins, comes to the optimizer and ends."""

    def _backward(self):
        """Gradients of this step's batch; its loss, the mean over all processes."""
        inputs, targets = self.world.share(*self.feed(self.step))
        rows = self.settings.get("micro") or len(inputs)
        total = 0.0
        for part in zip(inputs.split(rows), targets.split(rows), strict=True):
            loss = self.loss(*part) * (len(part[0]) / len(inputs))
            loss.backward()
            total = total + loss.detach()
        return self.world.mean(total)

    def loss(self, inputs, targets):
        return loss_of(self._logits(inputs), targets)

    def _logits(self, inputs, weights=None):
        casts = contextlib.nullcontext()
        if self.settings.get("autocast"):
            dtype = getattr(torch, self.settings["autocast"])
            casts = torch.autocast(inputs.device.type, dtype)
        with casts:
            if weights is not None:
                return torch.func.functional_call(self.model, weights, inputs)
            return self.model(inputs)

    def _evaluate(self):
        """Add to the curves what the model is worth at x."""
        losses = self._read()
        if self.statistics and self.step:
            batches = [self.world.share(*self.feed(k))[:1] for k in range(STATISTICS_BATCHES)]
            emanest.update_bn(batches, self.model, self.optimizer)
        with self.optimizer.at_iterate():
            found = self.measured()
        for name, value in found.items():
            self.curves[name].append(rounded(value))
        self.curves["steps"].append(self.step)
        if losses:
            self.curves["train"].append(rounded(statistics.fmean(losses)))
        if not math.isfinite(found["loss"]) and self.diverged is None:
            self.diverged = self.step
        if self.probe and self.diverged is None and self.probe.due():
            self.curves["probes"].append(self.probe.take())

    def _read(self):
        """Losses of the steps since the last evaluation; waits for the device."""
        losses = torch.stack(self._unread).tolist() if self._unread else []
        self._unread.clear()
        for back, loss in enumerate(reversed(losses)):
            if not math.isfinite(loss):
                self.diverged = self.step - back
        return losses

    @torch.no_grad()
    def measured(self, weights=None):
        """Loss, and accuracy of a classifier, on what is held out.

        Args:
            weights: parameters by name; None: those of the model as they are.
        """
        was_training = self.model.training
        self.model.eval()
        loss = correct = count = 0.0
        for inputs, targets in self.held_out:
            logits = self._logits(inputs, weights)
            loss += loss_of(logits, targets).item() * targets.numel()
            correct += (logits.argmax(-1) == targets).sum().item()
            count += targets.numel()
        self.model.train(was_training)
        loss, correct, count = self.world.total([loss, correct, count]).tolist()
        found = {"loss": loss / count, "accuracy": correct / count}
        return {name: value for name, value in found.items() if name in self.curves}

    def result(self):
        """What is kept of the run, as JSON has it: null is a loss that is not finite."""
        state = [
            value
            for entries in self.optimizer.state.values()
            for value in entries.values()
            if torch.is_tensor(value) and value.ndim
        ]
        size = sum(t.numel() * t.element_size() for t in state) / self.parameters
        about = {"parameters": self.parameters, "state_bytes": round(size, 2)}
        return {**self.curves, "diverged": self.diverged, **about}

    def progress(self):
        """What a run needs to go on beside its model and optimizer; JSON after an evaluation."""
        return {
            "scheduler": self.scheduler.state_dict(),
            "step": self.step,
            "curves": self.curves,
            "unread": list(self._unread),
        }

    def load_progress(self, state):
        self.scheduler.load_state_dict(state["scheduler"])
        self.step, self.curves = state["step"], state["curves"]
        self._unread = list(state["unread"])

    def state_dict(self):
        """All that a run of one process needs to go on as if it had not been interrupted."""
        model, optimizer = inside(self.model).state_dict(), self.optimizer.state_dict()
        return {"model": model, "optimizer": optimizer, "progress": self.progress()}

    def load_state_dict(self, state):
        inside(self.model).load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.load_progress(state["progress"])
