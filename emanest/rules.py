# SPDX-License-Identifier: MIT
"""Every formula of the library, once.

Letters, here and everywhere:

    y  gradient point: what the parameters hold while training
    x  iterate: what is evaluated and saved        z  a base optimizer's own iterate
    g  gradient at y        u  base update, to be added: it holds -lr and the weight decay
    w  y + u, the point that the base optimizer reached
    m  average of the iterate's displacements x' - x

One step is a base rule followed by a lookahead rule:

    base       (y, g, state, numbers) -> (u, state)        gradient -> update
    lookahead  (w, u, state, numbers) -> (y, state)        update -> next gradient point

Where the base steps along a direction that has to be found first (Muon), a momentum rule precedes
that, and a row rule may follow it:

    momentum   (g, state, numbers) -> (d, state)           gradient -> what directions are made of
    row        (mean square, state, numbers) -> (factor, state)
    norm       (before, after, numbers) -> factor          sums of squares -> factor of all rows

A rule is a function of numbers and arrays that uses only ``+ - * /``, comparisons, ``root`` and the
``FORMULAS``, so the same text runs on torch tensors, inside a Triton kernel through ``triton.jit``,
as C++ once ``make rules`` has written it to ``csrc/rules.h``, and on plain numbers where it takes
no square root. State comes and goes as a tuple. This module imports nothing; the tables at its end
name each rule's state and numbers, in the order in which the rule unpacks them.
"""


def root(a):
    """The square root of an array; back ends put their own in its place, which rounds correctly."""
    return a.sqrt()


# ---- formulas, which rules and back ends call ---------------------------------------------------


def averaged(a, g, weight):
    """An average after a further gradient."""
    # a weight of 1 forgets exactly: a + (g - a) would round, which g may be too small to bear
    a = (weight < 1.0) * a
    return a + weight * (g - a)


def averaged_squares(a, g, weight):
    """An average of squares after a further gradient."""
    # in this order g * g does not overflow before its weight
    return a - weight * a + weight * g * g


def evened(factor, square):
    """A row's sum of squares after its factor."""
    return factor * factor * square


# ---- base rules ---------------------------------------------------------------------------------


def sgd(y, g, state, numbers):
    """Gradient descent; ``weight_decay`` is an L2 penalty, added to the gradient."""
    lr, weight_decay = numbers
    return -lr * (g + weight_decay * y), state


def momentum(y, g, state, numbers):
    """SGD with a momentum buffer (heavy ball); ``friction`` is 1 - momentum."""
    (momentum_buffer,) = state
    lr, weight_decay, friction, weight = numbers
    g = g + weight_decay * y
    # what is lost, not what is kept: 0.9 in float32 is off by 3e-8, and the buffer by 10 times that
    momentum_buffer = momentum_buffer + (weight * g - friction * momentum_buffer)
    return -lr * momentum_buffer, (momentum_buffer,)


def nesterov(y, g, state, numbers):
    """SGD with Nesterov momentum in PyTorch's form: the buffer, then one step beyond it."""
    (momentum_buffer,) = state
    lr, weight_decay, friction, weight = numbers
    g = g + weight_decay * y
    momentum_buffer = momentum_buffer + (weight * g - friction * momentum_buffer)
    return -lr * (g + (momentum_buffer - friction * momentum_buffer)), (momentum_buffer,)


def adamw(y, g, state, numbers):
    """AdamW; ``decay`` is lr * weight_decay, ``scale`` undoes the bias of the second moment."""
    exp_avg, exp_avg_sq = state
    step_size, decay, weight1, weight2, scale, eps = numbers
    exp_avg = averaged(exp_avg, g, weight1)
    exp_avg_sq = averaged_squares(exp_avg_sq, g, weight2)
    u = -step_size * exp_avg / (root(exp_avg_sq) * scale + eps) - decay * y
    return u, (exp_avg, exp_avg_sq)


def amsgrad(y, g, state, numbers):
    """AdamW that divides by the largest second moment so far."""
    exp_avg, exp_avg_sq, max_exp_avg_sq = state
    step_size, decay, weight1, weight2, scale, eps = numbers
    exp_avg = averaged(exp_avg, g, weight1)
    exp_avg_sq = averaged_squares(exp_avg_sq, g, weight2)
    # a selection, not b + (a > b) * (a - b), which would round
    grown = exp_avg_sq > max_exp_avg_sq
    max_exp_avg_sq = grown * exp_avg_sq + (exp_avg_sq <= max_exp_avg_sq) * max_exp_avg_sq
    u = -step_size * exp_avg / (root(max_exp_avg_sq) * scale + eps) - decay * y
    return u, (exp_avg, exp_avg_sq, max_exp_avg_sq)


def direction(y, g, state, numbers):
    """Step along a direction that was computed elsewhere; the decay is decoupled."""
    step_size, decay = numbers
    return -step_size * g - decay * y, state


# ---- momentum rules and row rules ---------------------------------------------------------------


def ema(g, state, numbers):
    """Average gradients; ``blend`` moves the result on, towards the newest (Muon's "nesterov")."""
    (momentum_buffer,) = state
    weight, blend = numbers
    momentum_buffer = averaged(momentum_buffer, g, weight)
    return momentum_buffer + blend * (g - momentum_buffer), (momentum_buffer,)


def adam(g, state, numbers):
    """Adam's direction, whose averages are those of ``adamw``: no bias is undone (SOAP)."""
    exp_avg, exp_avg_sq = state
    weight1, weight2, eps = numbers
    exp_avg = averaged(exp_avg, g, weight1)
    exp_avg_sq = averaged_squares(exp_avg_sq, g, weight2)
    return exp_avg / (root(exp_avg_sq) + eps), (exp_avg, exp_avg_sq)


def normuon(mean_square, state, numbers):
    """Factor that evens rows out: one over the root of the average of their mean squares."""
    (second_momentum_buffer,) = state
    weight, eps = numbers
    delta = mean_square - second_momentum_buffer
    second_momentum_buffer = second_momentum_buffer + weight * delta
    return 1.0 / (root(second_momentum_buffer) + eps), (second_momentum_buffer,)


def kept(before, after, numbers):
    """Factor that gives a matrix its norm back; sums of squares before and after rows' factors."""
    (eps,) = numbers
    return root(before) / (root(after) + eps)


# ---- lookahead rules ----------------------------------------------------------------------------


def none(w, u, state, numbers):
    """No lookahead: the next gradient is taken where the base optimizer arrived."""
    return w, state


def ema_nesterov(w, u, state, numbers):
    """Look ahead along the average of past displacements (EMA-Nesterov).

    No copy of the previous iterate is needed: ``x' - x = (y + u) - (y - lookahead * m)``.
    """
    (exp_avg_update,) = state
    weight, lookahead, next_lookahead = numbers
    delta = lookahead * exp_avg_update + u
    exp_avg_update = exp_avg_update + weight * (delta - exp_avg_update)
    return w + next_lookahead * exp_avg_update, (exp_avg_update,)


def nag(w, u, state, numbers):
    """Look ahead along the last displacement (Nesterov's accelerated gradient, canonical form)."""
    (velocity,) = state
    lookahead, next_lookahead = numbers
    velocity = lookahead * velocity + u
    return w + next_lookahead * velocity, (velocity,)


def lookahead(w, u, state, numbers):
    """Pull the slow weights x towards the fast ones and restart from there (Lookahead)."""
    (x,) = state
    (alpha,) = numbers
    # from the nearer end, as torch.lerp does: exact at alpha = 0 and at alpha = 1
    near = (alpha < 0.5) * 1.0
    x = near * x + (1.0 - near) * w + (alpha - (1.0 - near)) * (w - x)
    return x, (x,)


def long_horizon(w, u, state, numbers):
    """Look ahead along the displacement since the last sync (long-horizon lookahead)."""
    (x,) = state
    (stepsize,) = numbers
    return w + stepsize * (w - x), (w,)


def snoo(w, u, state, numbers):
    """One Nesterov SGD step of the slow weights on the displacement since the last sync (SNOO)."""
    x, outer_momentum_buffer = state
    outer_lr, outer_momentum = numbers
    delta = w - x
    outer_momentum_buffer = outer_momentum * outer_momentum_buffer + delta
    x = x + outer_lr * (delta + outer_momentum * outer_momentum_buffer)
    return x, (x, outer_momentum_buffer)


def gpa(w, u, state, numbers):
    """Average z into x and take gradients between the two (GPA; Schedule-Free).

    ``weight`` is 1 - mu_x, ``gain`` is weight - mu_x * mu_y, ``decay`` shrinks z. x is implicit:
    ``x = y - lookahead * (z - y)`` with lookahead = 1 / mu_y - 1.
    """
    (z,) = state
    weight, gain, decay = numbers
    shrinkage = decay * z
    w = w - shrinkage
    u = u - shrinkage
    return w + weight * (z - w) + gain * u, (z + u,)


def extrapolate(w, u, state, numbers):
    """Move to the point whose gradient NALA takes next; the slow weights x stay."""
    (x,) = state
    (mu,) = numbers
    return w + mu * (w - x), (x,)


def anchor(w, u, state, numbers):
    """Make the point just reached the slow weights (the end of NALA's outer step)."""
    return w, (w,)


# ---- between x and y: (point, state, numbers) -> point ------------------------------------------


def x_along(y, state, numbers):
    """Take back the lookahead along m."""
    (m,) = state
    (lookahead,) = numbers
    return y - lookahead * m


def y_along(x, state, numbers):
    """Look ahead along m."""
    (m,) = state
    (lookahead,) = numbers
    return x + lookahead * m


def x_slow(y, state, numbers):
    """Read the slow weights."""
    (x,) = state
    return x


def x_between(y, state, numbers):
    """Extrapolate from z through y to x."""
    (z,) = state
    (lookahead,) = numbers
    return y - lookahead * (z - y)


def y_between(x, state, numbers):
    """Interpolate between x and z."""
    (z,) = state
    (lookahead,) = numbers
    return x + lookahead / (1.0 + lookahead) * (z - x)


# ---- passes: what is done to every element of some parameters, with rules that are given ---------


def step(base, lookahead, y, g, base_state, lookahead_state, base_numbers, lookahead_numbers):
    """One whole optimizer step: gradient -> base update -> lookahead."""
    u, base_state = base(y, g, base_state, base_numbers)
    y, lookahead_state = lookahead(y + u, u, lookahead_state, lookahead_numbers)
    return y, base_state, lookahead_state


def follow(lookahead, w, snapshot, state, numbers):
    """The lookahead after a step that another optimizer took, from a snapshot to w."""
    return lookahead(w, w - snapshot, state, numbers)


def move(point, y, state, numbers):
    """From y to x, or back; the state is only read."""
    return point(y, state, numbers), state


def average(momentum, g, state, numbers):
    """A gradient's momentum, before it is orthogonalised."""
    return momentum(g, state, numbers)


# ---- tables -------------------------------------------------------------------------------------


class State(str):
    """The name of what is kept of each parameter, which says what that is like.

    Args:
        name: in ``optimizer.state[p]``; that alone is shaped as the parameter and starts at zero.
        shape: (parameter, group) -> how many of its first dimensions are the parameter's, sharded
            with them, and the sizes of its others; perhaps, whether matrices lie column by column;
            perhaps, what else tells apart what has one shape. None: as the parameter.
        options: names of the group's options that the shape depends on, which then have to stay.
        position: whether it holds a point, which starts as a copy of the parameter.
    """

    shape: object
    options: tuple[str, ...]
    position: bool

    def __new__(cls, name, shape=None, options=(), position=False):
        """One that is a ``State`` stays as it is."""
        if isinstance(name, cls):
            return name
        state = super().__new__(cls, name)
        state.shape, state.options, state.position = shape, options, position
        return state


class Rule:
    """A rule with the names of its state and of its numbers, in order.

    A row rule has the name of a norm rule, too, whose numbers are the last of its own.
    """

    def __init__(self, function, state=(), numbers=(), norm=""):
        self.function, self.state, self.numbers, self.norm = function, state, numbers, norm


_SGD = ("lr", "weight_decay")
_MOMENTUM = (*_SGD, "friction", "weight")
_ADAM = ("step_size", "decay", "weight1", "weight2", "scale", "eps")

BASES = {
    "sgd": Rule(sgd, (), _SGD),
    "momentum": Rule(momentum, ("momentum_buffer",), _MOMENTUM),
    "nesterov": Rule(nesterov, ("momentum_buffer",), _MOMENTUM),
    "adamw": Rule(adamw, ("exp_avg", "exp_avg_sq"), _ADAM),
    "amsgrad": Rule(amsgrad, ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"), _ADAM),
    "direction": Rule(direction, (), ("step_size", "decay")),
}

MOMENTA = {
    "ema": Rule(ema, ("momentum_buffer",), ("weight", "blend")),
    "adam": Rule(adam, ("exp_avg", "exp_avg_sq"), ("weight1", "weight2", "eps")),
}

ROWS = {"normuon": Rule(normuon, ("second_momentum_buffer",), ("weight", "eps"), norm="kept")}

NORMS = {"kept": Rule(kept, (), ("eps",))}

LOOKAHEADS = {
    "none": Rule(none),
    "ema_nesterov": Rule(
        ema_nesterov, ("exp_avg_update",), ("weight", "lookahead", "next_lookahead")
    ),
    "nag": Rule(nag, ("velocity",), ("lookahead", "next_lookahead")),
    "lookahead": Rule(lookahead, ("x",), ("alpha",)),
    "long_horizon": Rule(long_horizon, ("x",), ("stepsize",)),
    "snoo": Rule(snoo, ("x", "outer_momentum_buffer"), ("outer_lr", "outer_momentum")),
    "gpa": Rule(gpa, ("z",), ("weight", "gain", "decay")),
    "extrapolate": Rule(extrapolate, ("x",), ("mu",)),
    "anchor": Rule(anchor, ("x",)),
}

# how x is read from y, and y from x where that is possible; the state is the method's first
POINTS = {
    "x_along": Rule(x_along, ("m",), ("lookahead",)),
    "y_along": Rule(y_along, ("m",), ("lookahead",)),
    "x_slow": Rule(x_slow, ("x",), ("lookahead",)),
    "x_between": Rule(x_between, ("z",), ("lookahead",)),
    "y_between": Rule(y_between, ("z",), ("lookahead",)),
}


class Pass:
    """A pass over some parameters, and over an input (gradient, snapshot) for each of them.

    Its function takes a rule of each table, the columns that it reads, the state and the numbers of
    each rule; it returns the value that the columns receive that it writes, and the state.

    Args:
        function: one of those above.
        tables: of its rules.
        reads, writes: "y", "input" or both.
        factor: whether a number comes before those of the rules, a factor of the inputs.
        steps: whether it writes the state.
    """

    def __init__(self, function, tables, reads, writes=("y",), factor=False, steps=True):
        self.function, self.tables, self.reads, self.writes = function, tables, reads, writes
        self.factor, self.steps = factor, steps

    def rows(self, names):
        """The rows of its tables that have these names."""
        return [table[name] for table, name in zip(self.tables, names, strict=True)]


PASSES = {
    "step": Pass(step, (BASES, LOOKAHEADS), ("y", "input"), factor=True),
    "follow": Pass(follow, (LOOKAHEADS,), ("y", "input"), writes=("y", "input")),
    "move": Pass(move, (POINTS,), ("y",), steps=False),
    "momentum": Pass(average, (MOMENTA,), ("input",), factor=True),
}

# formulas that are neither rules nor passes, in an order in which each may call those before it; an
# argument is a number if a rule has one of that name
FORMULAS = (averaged, averaged_squares, evened)

# state of the lookahead rules, whichever of them a group uses; the first of each says where x is
LOOKAHEAD_STATE = frozenset(name for rule in LOOKAHEADS.values() for name in rule.state)
POINT_STATE = frozenset(rule.state[0] for rule in LOOKAHEADS.values() if rule.state)
