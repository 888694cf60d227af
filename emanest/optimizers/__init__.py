# SPDX-License-Identifier: MIT
"""The optimizers, one file each."""

from .adamw import AdamW
from .aurora import Aurora
from .muon import Muon
from .normuon import NorMuon
from .optimizer import Optimizer
from .sgd import SGD
from .soap import SOAP
from .wrap import Wrap

__all__ = ["OPTIMIZERS", "SGD", "SOAP", "AdamW", "Aurora", "Muon", "NorMuon", "Optimizer", "Wrap"]

# those that step matrices take groups with the base of any of them, and of AdamW
_OF_MATRICES = Muon, NorMuon, SOAP, Aurora
_BASES = {name: base for cls in _OF_MATRICES for name, base in cls.bases.items()}
for cls in _OF_MATRICES:
    cls.bases = {**cls.bases, **_BASES}

# the name of an optimizer, that of its own base -> its class; users may add theirs
OPTIMIZERS: dict[str, type[Optimizer]] = {
    next(iter(cls.bases)): cls for cls in (AdamW, SGD, Muon, NorMuon, SOAP, Aurora)
}
