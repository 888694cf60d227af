"""The optimizers, one file each."""

from .adamw import AdamW
from .aurora import Aurora
from .muon import Muon
from .normuon import NorMuon
from .optimizer import Optimizer
from .sgd import SGD
from .wrap import Wrap

__all__ = ["SGD", "AdamW", "Aurora", "Muon", "NorMuon", "Optimizer", "Wrap"]
