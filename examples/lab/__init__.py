# SPDX-License-Identifier: MIT
"""The lab: training runs that say whether looking ahead helps, when, and by how much."""
