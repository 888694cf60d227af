# SPDX-License-Identifier: MIT
"""What the modules of a model tell about each other: outputs, blocks, heads, shared layers."""

from collections import Counter

from torch import nn

from . import names

CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
# a convolution of so many channels reads the input, or writes the output: colours, perhaps a mask
COLOURS = 4
# what modules, and the configurations of models, call their numbers of heads
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")
_GROUPS = (
    *("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_kv_head", "kv_heads"),
    *("num_query_groups", "n_query_groups"),
)
_HEAD_SIZE = ("head_dim", "head_size", "dim_head", "d_head")
# under which torch keeps the module that it compiles, checkpoints or shards by FSDP1
_WRAPPED = "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"
# what puts modules together, and has no attributes of its own
_CONTAINERS = nn.Sequential, nn.ModuleList, nn.ModuleDict
# why a layer is taken for one that gives the output: its name; its width; its place
NAMED, WIDE, LAST = "output layer", "wide, output?", "last, output?"


class Layers:
    """The modules of a model, by names that are the same whatever torch has wrapped them in.

    Attributes:
        modules: name -> module, for all names that a module goes by.
        names: module -> all its names; a shared one counts once.
        places: parameter -> all names that it has as attributes of modules. The model itself may
            call it otherwise, or leave it out.
        outputs: layer that gives, or may give, the output -> why: ``NAMED``, ``WIDE``, ``LAST``.
    """

    def __init__(self, model):
        self.modules, self.names, self.places = {}, {}, {}
        for name, module in model.named_modules(remove_duplicate=False):
            own = _unwrapped(name)
            # what is wrapped comes after its wrapper, and has the name then
            self.modules[own] = module
            self.names.setdefault(module, []).append(own)
            # not by a method that the module may have in place of this one
            for attribute, p in nn.Module.named_parameters(
                module, recurse=False, remove_duplicate=False
            ):
                self.places.setdefault(p, []).append(f"{own}.{attribute}" if own else attribute)
        self._kinds = Counter(map(type, self.names))
        self._top = _top(model)
        self.outputs = dict(self._outputs())

    def _outputs(self):
        tables = [m for m in self.names if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
        lengths = {table.num_embeddings for table in tables}
        attention = [m for m in self.names if isinstance(m, nn.MultiheadAttention)]
        linear = [m for m in self.names if isinstance(m, nn.Linear)]
        last, last_linear = _last(self.names), linear[-1] if linear else None
        convolution = last if self._gives_colours(last) else None
        if convolution is not None:
            yield convolution, NAMED if self._on_top(last, names.LAST_CONVOLUTION) else LAST
        for layer in linear:
            if any(layer is each.out_proj for each in attention):
                continue
            is_last = layer is last_linear
            named = any(map(names.HEAD_NAME.search, self._titles(layer)))
            named = named or self._on_top(layer, names.TOP_NAME)
            if named or (is_last and self._on_top(layer, names.LAST_NAME)):
                yield layer, NAMED
            elif layer.out_features in lengths and not self._in_block(layer):
                yield layer, WIDE
            elif is_last and convolution is None and not self._in_block(layer):
                yield layer, LAST

    def _gives_colours(self, layer):
        """Whether it is a convolution from many channels to few, in no block."""
        if not isinstance(layer, CONVOLUTIONS) or self._in_block(layer):
            return False
        return layer.out_channels <= COLOURS < layer.in_channels

    def _titles(self, layer):
        """Its names, and those of sequences whose last layer it is."""
        titles = [*self.names[layer]]
        for name in titles:
            around = name.rpartition(".")[0]
            sequence = self.modules[around]
            if isinstance(sequence, nn.Sequential) and _last(sequence.modules()) is layer:
                # the loop comes to it, too; of the model itself there is no name
                titles += [around] if around else []
        return titles

    def _on_top(self, layer, expression):
        """Whether the model, without what is wrapped around it, calls it so."""
        return any(expression.fullmatch(t.removeprefix(self._top)) for t in self._titles(layer))

    def _in_block(self, module):
        return any(map(self._has_block, self.names[module]))

    def _has_block(self, name):
        while name:
            name = name.rpartition(".")[0]
            module = self.modules[name]
            if isinstance(module, nn.ModuleList):
                return True
            # containers occur often without being blocks
            if self._kinds[type(module)] > 1 and not isinstance(module, nn.Sequential):
                return True
        return False

    def owners(self, places):
        """The different (module, attribute) that hold a parameter; a name where no module is."""
        parts = (name.rpartition(".") for name in places)
        return {(self.modules.get(owner, owner), attribute) for owner, _, attribute in parts}

    def heads(self, owner, rows, columns):
        """How a fused projection comes apart.

        Numbers of heads around it are asked first; without them, three rows for each column are
        queries, keys and values.

        Args:
            owner: the name of the layer.
            rows, columns: of its weight.

        Returns:
            Rows of queries, keys and values; 3, if they are alike; 1: it is not known.
        """
        heads, groups, size = self._numbers(owner)
        thirds = rows == 3 * columns
        if not heads:
            return 3 if thirds and not groups else 1
        # without a number for keys they are as many as queries, if sizes agree
        count = heads + 2 * (groups or heads)
        if not size and (groups or thirds):
            size = rows // count
        if not size or count * size != rows:
            return 1
        alike = groups in (0, heads)
        return 3 if alike else (heads * size, groups * size, groups * size)

    def _numbers(self, owner):
        """Numbers of heads, of heads of keys, and their size, around a layer; 0: not known."""
        around = owner.rpartition(".")[0]
        while around and isinstance(self.modules[around], _CONTAINERS):
            around = around.rpartition(".")[0]
        module = self.modules[around]
        return [_number(module, each) for each in (_HEADS, _GROUPS, _HEAD_SIZE)]


def _last(modules):
    """The last linear layer or convolution, in the order of their definition; or None."""
    layers = [m for m in modules if isinstance(m, (nn.Linear, *CONVOLUTIONS))]
    return layers[-1] if layers else None


def _unwrapped(name):
    """A name of a module without the parts that stand for wrappers of torch's."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPED)


def _top(model):
    """How names begin in the model that others, such as DDP, are wrapped around."""
    top = ""
    while next(nn.Module.named_parameters(model, recurse=False), None) is None:
        children = [*model.named_children()]
        # a list of blocks is a part of the model, and no model
        if len(children) != 1 or isinstance(children[0][1], (nn.ModuleList, nn.ModuleDict)):
            break
        ((name, model),) = children
        top += "" if name in _WRAPPED else f"{name}."
    # a layer alone is the model: nothing is wrapped around it
    return top if next(model.children(), None) is not None else ""


def _number(module, keys):
    """A positive integer that a module, or its configuration, has under one of some names; or 0."""
    for where in (module, getattr(module, "config", None)):
        for name in keys:
            value = getattr(where, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return 0
