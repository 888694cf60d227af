# SPDX-License-Identifier: MIT
"""Fresh processes of Python, as ``python -c`` starts them, which need not import torch anew.

Each is a fork of a process that has imported torch, with the compiler that each of torch's
optimizers imports, and done nothing else. Variables that torch reads on import, such as
OMP_NUM_THREADS, are those of the first call.
"""

import atexit
import functools
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def python(code, cwd=None, env=None):
    """Run code in a process of its own; what came of it, with all that it printed."""
    with tempfile.TemporaryDirectory() as folder:
        printed = [Path(folder, name) for name in ("stdout", "stderr")]
        request = {
            "code": code,
            "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
            "printed": [*map(str, printed)],
        }
        server = _server()
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(code, status, *(path.read_text() for path in printed))


@functools.cache
def _server():
    command = [sys.executable, "-c", "import fresh; exec(fresh.serve())"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    server = subprocess.Popen(command, cwd=Path(__file__).parent, text=True, **pipes)
    # without requests it ends
    atexit.register(server.communicate)
    return server


def serve():
    """Fork for every request, and say how the fork ended; in a fork, return the code to run."""
    import torch._dynamo  # noqa: F401

    # a fork that ends would look through all that torch has made, which takes half a second
    gc.freeze()
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            return _begin(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
    return ""


def _begin(code, cwd, env, printed):
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for descriptor, path in enumerate([os.devnull, *printed]):
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(file, descriptor)
        os.close(file)
    return code
