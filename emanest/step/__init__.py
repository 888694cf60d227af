# SPDX-License-Identifier: MIT
"""A step before its passes: select what is stepped, decide whether it happens, find its numbers."""
