# SPDX-License-Identifier: Apache-2.0
"""Everything that the network, the kernel or the API can send, damaged on purpose, from one seed.

- ``mutate``    bytes and JSON made wrong: flips, splices, lies about lengths, huge numbers, deep nesting
- ``frames``    frames made wrong and their checksums made right again, so that the damage gets in
- ``targets``   what is fed: the readers, each with the exceptions it declares
- ``brain``     the whole ``Node``, with a memory: frames, plans, time, and how big it may become
- ``campaign``  the loop: bounds on time and memory, failures made small, kept and replayed

``python -m tests.fuzz --seconds S [--seed N]`` runs one; ``--replay FILE`` repeats what one found. Failing
inputs stay in ``corpus/`` as hex and are tried first ever after.
"""
