# SPDX-License-Identifier: Apache-2.0
"""Condition types of a VirtualIP, and the reasons for every yes and no.

A Reason is the same word in the condition, the event, the metric label, the log and docs/reasons.md
(a tidy test compares). The CRD's schema does not list them, so that a new one needs no new schema.
"""

from enum import StrEnum


class ConditionType(StrEnum):
    """All four are present on every VirtualIP the operator has seen."""

    ACCEPTED = "Accepted"  # the VirtualIP may have this address
    SCHEDULED = "Scheduled"  # it has a router with a leader
    READY = "Ready"  # it was seen held and announced by a live speaker
    CONFLICT = "Conflict"  # somebody else on the segment claims the address


class Reason(StrEnum):
    # Accepted
    ACCEPTED = "Accepted"
    INVALID_SPEC = "InvalidSpec"
    ADDRESS_IN_USE = "AddressInUse"
    ADDRESS_RELEASING = "AddressReleasing"
    ADDRESS_OF_NODE = "AddressOfNode"
    MAC_IN_USE = "MACInUse"
    MAC_OF_NODE = "MACOfNode"
    NO_CLUSTER_UID = "NoClusterUID"
    POOL_NOT_SUPPORTED = "PoolNotSupported"
    GROUP_DISAGREES = "GroupDisagrees"
    # Scheduled
    SCHEDULED = "Scheduled"
    NOT_ACCEPTED = "NotAccepted"
    NO_NODE_MATCHES = "NoNodeMatches"
    NO_NODE_ON_SUBNET = "NoNodeOnSubnet"
    NO_LIVE_SPEAKER = "NoLiveSpeaker"
    NO_VIRTUAL_ROUTER_ID = "NoVirtualRouterID"
    MOVING = "Moving"
    # why one node is no candidate (events, explain)
    SELECTOR_MISMATCH = "SelectorMismatch"
    NODE_DELETED = "NodeDeleted"
    NO_SPEAKER = "NoSpeaker"
    SPEAKER_SILENT = "SpeakerSilent"
    INTERFACE_NOT_FOUND = "InterfaceNotFound"
    NO_INTERFACE_ON_SUBNET = "NoInterfaceOnSubnet"
    NO_CARRIER = "NoCarrier"
    LISTENING = "Listening"
    VIRTUAL_MAC_UNAVAILABLE = "VirtualMACUnavailable"
    # Ready
    HELD = "Held"
    NOT_SCHEDULED = "NotScheduled"
    NOT_HELD = "NotHeld"
    CLAIMING = "Claiming"
    BIND_FAILED = "BindFailed"
    SEVERAL_ACTIVE = "SeveralActive"
    VIRTUAL_MAC_BLOCKED = "VirtualMACBlocked"
    # Conflict
    NO_CONFLICT = "NoConflict"
    ADDRESS_ANSWERED = "AddressAnswered"
    LISTED_ELSEWHERE = "ListedElsewhere"
    ADDRESS_CLAIMED = "AddressClaimed"
    ADDRESS_CLAIMED_BY_PEER = "AddressClaimedByPeer"
    FOREIGN_ROUTER = "ForeignRouter"
    MAC_DOUBLED = "MACDoubled"
    # transitions (status.lastFailover.reason, events)
    FIRST_ACTIVE = "FirstActive"
    ACTIVE_SILENT = "ActiveSilent"
    ACTIVE_RESIGNED = "ActiveResigned"
    PREEMPTED = "Preempted"
    HANDED_OVER = "HandedOver"
    # why a move that was asked for did not happen (status.move)
    DRAINING = "Draining"
    HANDOVER_FAILED = "HandoverFailed"
    # a router that is not running (Initialize)
    NOT_CANDIDATE = "NotCandidate"
    INVALID_PLAN = "InvalidPlan"
    STARTING = "Starting"
    STOPPING = "Stopping"
    # a Backup that holds back
    ISOLATED = "Isolated"
    ACTIVE_HEARD_BY_OTHERS = "ActiveHeardByOthers"
    # what a node lacks (a Speaker's preflight)
    FENCE_UNAVAILABLE = "FenceUnavailable"
    INTERVAL_RAISED = "IntervalRaised"
