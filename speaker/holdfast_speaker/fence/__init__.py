# SPDX-License-Identifier: Apache-2.0
"""The kernel's fence: nf_tables' rules that silence addresses and virtual MACs whose speaker stalls or dies.

``kernel`` is the door; ``guarding`` and ``rules`` say what the table should hold, as data.
"""
