# SPDX-License-Identifier: MIT
"""Benchmarks: cases as data, peers as a table, one measurement core, two shells around it.

``make bench`` runs the CPU cases under pytest-benchmark, ``make gpu-bench`` the GPU ones without.
"""
