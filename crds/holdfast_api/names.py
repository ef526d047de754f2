# SPDX-License-Identifier: Apache-2.0
"""Names that both programs and the cluster share."""

from typing import Final, NewType

GROUP: Final = "holdfast.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

VIRTUAL_IPS: Final = "virtualips"
VIRTUAL_IP_POOLS: Final = "virtualippools"
VIRTUAL_ROUTERS: Final = "virtualrouters"
SPEAKERS: Final = "speakers"

OPERATOR_MANAGER: Final = "holdfast-operator"
SPEAKER_MANAGER: Final = "holdfast-speaker"

# The speakers' Leases live apart from the operator's own, so that a speaker's token, which may write
# Leases in one namespace only, can never touch the operator's election.
OPERATOR_NAMESPACE: Final = "holdfast-system"
OPERATOR_LEASE: Final = "holdfast-operator"
SPEAKER_LEASE_NAMESPACE: Final = "holdfast-speakers"
SPEAKER_LEASE_SECONDS: Final = 25
SPEAKER_LEASE_RENEW_SECONDS: Final = 10

FORCE_RELEASE_ANNOTATION: Final = f"{GROUP}/force-release"
MOVE_TO_ANNOTATION: Final = f"{GROUP}/move-to"
DRAIN_LABEL: Final = f"{GROUP}/drain"

NodeName = NewType("NodeName", str)
RouterName = NewType("RouterName", str)


def router_name(virtual_router_id: int) -> RouterName:
    """The VirtualRouter's name follows from its VRID (1 to 255): one deleted by hand comes back the same."""
    return RouterName(f"vr-{virtual_router_id}")


def router_id(name: str) -> int | None:
    """The VRID a name of ours stands for, or None when it is not one of ours."""
    digits = name.removeprefix("vr-")
    if digits == name or not digits.isascii() or not digits.isdigit():
        return None
    value = int(digits)
    return value if 1 <= value <= 255 and router_name(value) == name else None
