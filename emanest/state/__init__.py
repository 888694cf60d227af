# SPDX-License-Identifier: MIT
"""What is kept from step to step: parameters in buckets, their state, time, who wrote, x and y."""
