# SPDX-License-Identifier: MIT
"""Programs that show emanest at work; none of them is installed."""
