# SPDX-License-Identifier: Apache-2.0
"""The rig: a real Kubernetes control plane and a segment of hosts on one Linux machine.

    binaries      etcd, kube-apiserver, kube-controller-manager and kubectl: found, or built from Go modules
    run           one run: its id, its folder, what it started; what is left of dead runs is swept
    process       one started program with its log
    api           a small blocking API client that can stand in any network namespace
    controlplane  the control plane, with Holdfast's CRDs, rights and admission policy in force
    network       namespaces, the switch, the cables and what can be wrong with them
    hosts         a host: a namespace with a NIC, a /run of its own, and a confined speaker
    probe         the client that asks 1,000 times a second and knows how long nobody answered
    witness       a station that asks each 5 ms who has an address, and notes when two answer
    onlookers     both of them around an event
    stalls        how long the machine itself was away, which is nobody's fault
    fleet         hosts whose speakers live on a kept plan, without any API
    cluster       all of it together, with verbs; what the stories, the demo and the benchmark use
    receiver      a small device with an ARP and ND cache of its own will
    rfc_peer      a small VRRPv3 peer that knows only the RFC checksum; frames that are wrong on purpose
    setup, demo   ``make setup`` and ``make demo``
    bench         ``make bench``: contestants (over peers), faults, figures

Nothing here runs in production. Every run has an id (``hf-1a2b``) in each path and namespace it makes,
and removes only what carries it; two runs at once never meet.
"""
