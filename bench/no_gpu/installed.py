# SPDX-License-Identifier: MIT
"""Importing this installs the GPU that is not there: a plugin for pytest and its workers."""

from . import install

install()
