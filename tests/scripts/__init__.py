# SPDX-License-Identifier: Apache-2.0
"""Recorded stories of the brain: one text file each, replayed and compared."""
