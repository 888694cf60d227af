"""What users call beside an optimizer: split a model, find, evaluate, probe, analyse."""
