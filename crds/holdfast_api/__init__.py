# SPDX-License-Identifier: Apache-2.0
"""What users, the operator and the speakers agree on.

Beside this package lie the CRDs (``crds/*.yaml``), hand-written and the source of truth; here is what
both programs know of them:

- ``names``       group, plurals, labels, Leases, field managers
- ``types``       one frozen msgspec struct for each object and part of an object
- ``conditions``  condition types and the Reason enum: the same word in condition, event, metric and docs
- ``decode``      dict -> struct, with every error at once in the API server's own words; behind it ``schema``
  (a walker over the CRDs that ``kinds`` reads) and ``rules`` (the CEL rules said in Python)
- ``manifests``   files, for ``python -m holdfast_api check FILE...``
- ``interfaces``  which NIC carries an address: asked by the planner and by the speaker, answered once
- ``kube``        a small list/watch/apply client over aiohttp; behind it ``kubeconfig``, ``answers``,
  ``watch``, and the pure ``lines`` and ``backoff``

Nothing here imports kopf, kubernetes, pyroute2 or scapy; import-linter guards that.
"""
