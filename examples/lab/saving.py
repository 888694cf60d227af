# SPDX-License-Identifier: MIT
"""Where a run stands, on disk: a file of one process, a distributed checkpoint of several."""

import json
import os
import shutil

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict


def save(run, path):
    """Keep where the run stands, whole or not at all; every process of its world calls this."""
    new = path.with_suffix(".new")
    if run.world.size == 1:
        torch.save(run.state_dict(), new)
        os.replace(new, path)
        return
    if run.world.first:
        shutil.rmtree(new, ignore_errors=True)
    dist.barrier()
    model, optimizer = get_state_dict(run.model, run.optimizer)
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=new)
    if run.world.first:
        (new / "run.json").write_text(json.dumps(run.progress()))
        shutil.rmtree(path, ignore_errors=True)
        os.replace(new, path)
    dist.barrier()


def load(run, path):
    """Let the run go on from where it stood, if it had begun."""
    if run.world.size == 1:
        if path.exists():
            device = run.world.device
            run.load_state_dict(torch.load(path, map_location=device, weights_only=True))
        return
    dist.barrier()
    if not path.exists():
        return
    model, optimizer = get_state_dict(run.model, run.optimizer)
    dcp.load({"model": model, "optimizer": optimizer}, checkpoint_id=path)
    set_state_dict(run.model, run.optimizer, model_state_dict=model, optim_state_dict=optimizer)
    run.load_progress(json.loads((path / "run.json").read_text()))


def remove(path):
    """Forget where a run stood."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
