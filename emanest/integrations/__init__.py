# SPDX-License-Identifier: MIT
"""Callbacks, factories and registries for training frameworks, imported only on request."""
