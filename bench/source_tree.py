# SPDX-License-Identifier: MIT
"""Let the source tree be used without being installed, where nothing can be.

``kernels/`` is installed as ``emanest.kernels``, which no path of the tree spells. Importing this
module, or giving it to pytest as ``-p bench.source_tree``, makes that name work:

    PYTHONPATH=. python3 -m pytest -p bench.source_tree -m gpu tests
"""

from pathlib import Path

import emanest

ROOT = str(Path(__file__).parents[1])

# where the submodules of the package are looked for: emanest/ first, then the root
if ROOT not in emanest.__path__:
    emanest.__path__.append(ROOT)
