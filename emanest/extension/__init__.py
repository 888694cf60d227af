# SPDX-License-Identifier: MIT
"""The compiled extension ``emanest._C``: what it is made of, how it is built, where it is found.

The modules here need the standard library alone when they are imported, but for ``loaded``:
``setup.py`` loads this folder by its path, where torch may be missing. ``python -m emanest.build``
is the command.
"""
