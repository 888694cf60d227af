# SPDX-License-Identifier: MIT
"""The loss along the averaged direction and along the last step, on the way of a run."""

import emanest

from .numbers import rounded


class Probe:
    """Evaluates the loss at x + b m and at x + b (x - previous x), at some steps of a run.

    The run's entry ``probe`` has ``every``, a number of evaluations, and ``stepsizes``, the values
    of b. m is the average of updates of EMA-Nesterov: figures 2 and 8 of arXiv:2605.25395.
    """

    def __init__(self, run):
        self.run = run
        self.every = run.settings["probe"]["every"]
        self.stepsizes = run.settings["probe"]["stepsizes"]
        self.previous = None

    def before_step(self):
        """Keep x before a step after which the loss is taken."""
        nothing = not self._at(self.run.step + 1)
        self.previous = None if nothing else self._x()

    def due(self):
        return self._at(self.run.step)

    def _at(self, step):
        every = self.every * self.run.every
        return step > 0 and (step % every == 0 or step == self.run.settings["steps"])

    def _x(self):
        with self.run.optimizer.at_iterate():
            return {name: p.detach().clone() for name, p in self.run.model.named_parameters()}

    def take(self):
        """Losses by direction, in the order of the stepsizes."""
        average = emanest.probe_lookahead(self.run.optimizer, self._loss, self.stepsizes)
        x, before = self._x(), self.previous
        # a step ends with this: nothing of it is to be kept where the run stands
        self.previous = None
        # never written to the parameters, where the optimizer would take them for x
        last = [self._loss({k: x[k] + b * (x[k] - before[k]) for k in x}) for b in self.stepsizes]
        return {"step": self.run.step, "average": average, "last step": last}

    def _loss(self, weights=None):
        return rounded(self.run.measured(weights)["loss"])
