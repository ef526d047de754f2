# SPDX-License-Identifier: Apache-2.0
"""Objects -> structs, with every error at once, each with its field and the API server's words.

Two ways in:

- ``decode`` and ``decode_file`` check the whole schema of the CRD, for files and for whoever wants all
  errors; a file may hold no unknown field.
- ``decode_virtual_ip``, ``decode_router`` and ``decode_speaker`` are for what the API server has checked
  already: typed decoding without the CRDs' YAML, plus the checks without which a value would do harm.
  Unknown fields are ignored, so that an old speaker reads what a new operator wrote.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from holdfast_api import rules, schema
from holdfast_api.schema import FieldError
from holdfast_api.types import Speaker, VirtualIP, VirtualIPPool, VirtualRouter

__all__ = [
    "DecodeError",
    "FieldError",
    "decode",
    "decode_file",
    "decode_router",
    "decode_speaker",
    "decode_virtual_ip",
]

Kind = VirtualIP | VirtualIPPool | VirtualRouter | Speaker
Raw = bytes | msgspec.Raw | Mapping[str, Any]
_TYPES: Final[dict[str, type[Kind]]] = {
    "VirtualIP": VirtualIP,
    "VirtualIPPool": VirtualIPPool,
    "VirtualRouter": VirtualRouter,
    "Speaker": Speaker,
}
_LONGEST_INTERVAL_MS: Final = 40_950
_MOST_CANDIDATES: Final = 254
_MISSING: Final = re.compile(r"Object missing required field `(\w+)`")
_T = TypeVar("_T", VirtualIP, VirtualRouter, Speaker)


class DecodeError(ValueError):
    """An object that cannot be used; ``errors`` has at least one, and the text names them all."""

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__("; ".join(f"{error.field}: {error.message}" for error in errors))
        self.errors = errors


def decode(given: Mapping[str, Any]) -> Kind:
    """A whole object, checked as the API server checks it at creation. DecodeError names every error."""
    wanted, errors = _schema_checked(given)
    if errors:
        raise DecodeError(errors)
    return _converted(wanted, _TYPES[wanted["kind"]])


def decode_file(given: Mapping[str, Any]) -> Kind:
    """Like ``decode``, and unknown fields are errors: nobody else tells the author of a file."""
    wanted, errors = _schema_checked(given, schema.unknown_fields)
    if errors:
        raise DecodeError(errors)
    return _converted(wanted, _TYPES[wanted["kind"]])


def decode_virtual_ip(raw: Raw) -> VirtualIP:
    """A VirtualIP from the API. DecodeError when its address, or its MAC address, is none."""
    vip = _typed(raw, VirtualIP)
    errors = [] if vip.spec.address is None else _address("spec.address", vip.spec.address)
    return _checked(vip, errors + _mac("spec.macAddress", vip.spec.mac_address, rules.IS_WANTED_MAC))


def decode_router(raw: Raw) -> VirtualRouter:
    """A VirtualRouter from the API or from the plan file: what passes is safe to run."""
    router = _typed(raw, VirtualRouter)
    spec = router.spec
    errors = _within("spec.virtualRouterID", spec.virtual_router_id, 1, 255)
    errors += _interval(spec.advert_interval_milliseconds)
    errors += _within("spec.failbackDelaySeconds", spec.failback_delay_seconds, 0, 86_400)
    seen: set[str] = set()
    for index, each in enumerate(spec.addresses):
        where = f"spec.addresses[{index}]"
        errors += _address(f"{where}.address", each.address)
        if each.address in seen:
            errors.append(FieldError(where, f'Duplicate value: {{"address":"{each.address}"}}'))
        seen.add(each.address)
        errors += _mac(f"{where}.macAddress", each.mac_address, rules.IS_VIRTUAL_MAC)
    ipv6 = sum(":" in each.address for each in spec.addresses)
    if len(spec.addresses) - ipv6 > rules.MOST_IPV4:
        errors.append(FieldError("spec.addresses", f"Invalid value: {rules.IPV4_FIT}"))
    if ipv6 > rules.MOST_IPV6:
        errors.append(FieldError("spec.addresses", f"Invalid value: {rules.IPV6_FIT}"))
    for index, name in enumerate(spec.interfaces):
        if not rules.TWINS[rules.IS_INTERFACE](name, None):
            errors.append(_invalid(f"spec.interfaces[{index}]", name, rules.IS_INTERFACE))
    return _checked(router, errors + _candidates(router))


def _candidates(router: VirtualRouter) -> list[FieldError]:
    candidates = router.spec.candidates
    errors: list[FieldError] = []
    if len(candidates) > _MOST_CANDIDATES:
        why = f"Too many: {len(candidates)}: must have at most {_MOST_CANDIDATES} items"
        errors.append(FieldError("spec.candidates", why))
    seen: set[str] = set()
    for index, candidate in enumerate(candidates):
        where = f"spec.candidates[{index}]"
        errors += _within(f"{where}.priority", candidate.priority, 1, 254)
        if candidate.node in seen:
            errors.append(FieldError(where, f'Duplicate value: {{"node":"{candidate.node}"}}'))
        seen.add(candidate.node)
        for place, source in enumerate(candidate.sources):
            if rules.parsed(source) is None:
                errors.append(_invalid(f"{where}.sources[{place}]", source, rules.IS_ADDRESS))
    return errors


def decode_speaker(raw: Raw) -> Speaker:
    """A Speaker from the API: its addresses are addresses, whatever its node wrote."""
    speaker = _typed(raw, Speaker)
    errors: list[FieldError] = []
    for index, interface in enumerate(speaker.status.interfaces):
        for place, cidr in enumerate(interface.addresses):
            if rules.masked(cidr) is None:
                where = f"status.interfaces[{index}].addresses[{place}]"
                errors.append(_invalid(where, cidr, "must be an address with its prefix length"))
    for index, report in enumerate(speaker.status.routers):
        for place, address in enumerate(report.held):
            if rules.parsed(address) is None:
                where = f"status.routers[{index}].held[{place}]"
                errors.append(_invalid(where, address, rules.IS_ADDRESS))
    return _checked(speaker, errors)


def _schema_checked(
    given: Mapping[str, Any], further: Callable[[Mapping[str, Any]], list[FieldError]] = lambda _: []
) -> tuple[dict[str, Any], list[FieldError]]:
    try:
        wanted, errors = schema.check(given)
        return wanted, schema.in_order([*further(given), *errors])
    except RecursionError as error:
        raise DecodeError([_unreadable(error)]) from error


def _unreadable(error: Exception) -> FieldError:
    return FieldError(schema.NOWHERE, f"Invalid value: {error}", blocks=True)


# --- inside -------------------------------------------------------------------------------------


def _checked(value: _T, errors: list[FieldError]) -> _T:
    if errors:
        raise DecodeError(errors)
    return value


def _typed(raw: Raw, kind: type[_T]) -> _T:
    try:
        if isinstance(raw, Mapping):
            return msgspec.convert(raw, kind)
        return msgspec.json.decode(raw, type=kind)
    except msgspec.DecodeError as error:
        raise DecodeError([_from_msgspec(error)]) from error
    except (RecursionError, UnicodeDecodeError) as error:  # nested a thousand deep, or no UTF-8
        raise DecodeError([_unreadable(error)]) from error


def _converted(wanted: Mapping[str, Any], kind: type[Kind]) -> Kind:
    try:
        return msgspec.convert(wanted, kind)
    except msgspec.ValidationError as error:  # the CRDs let through what types.py does not
        raise DecodeError([_from_msgspec(error)]) from error


def _from_msgspec(error: msgspec.DecodeError) -> FieldError:
    """msgspec stops at the first error, and names the place as ``$.spec.addresses[0]``."""
    why, _, place = str(error).partition(" - at `$")
    field = place.rstrip("`").removeprefix(".")
    missing = _MISSING.match(why)
    if missing is not None:
        return FieldError(f"{field}.{missing[1]}".removeprefix("."), "Required value", blocks=True)
    return FieldError(field or schema.NOWHERE, f"Invalid value: {why[:1].lower()}{why[1:]}", blocks=True)


def _invalid(field: str, value: str | int, why: str) -> FieldError:
    shown = msgspec.json.encode(value).decode()
    return FieldError(field, f"Invalid value: {shown}: {why}")


def _address(field: str, text: str) -> list[FieldError]:
    return [_invalid(field, text, message) for message in rules.broken(rules.ADDRESS_RULES, text)]


def _mac(field: str, text: str | None, rule: str) -> list[FieldError]:
    return [] if text is None or rules.TWINS[rule](text, None) else [_invalid(field, text, rule)]


def _within(field: str, value: int, least: int, most: int) -> list[FieldError]:
    if value < least:
        return [_invalid(field, value, f"{field} in body should be greater than or equal to {least}")]
    if value > most:
        return [_invalid(field, value, f"{field} in body should be less than or equal to {most}")]
    return []


def _interval(milliseconds: int) -> list[FieldError]:
    field = "spec.advertIntervalMilliseconds"
    errors = _within(field, milliseconds, 10, _LONGEST_INTERVAL_MS)
    if milliseconds % 10:
        errors.append(_invalid(field, milliseconds, f"{field} in body should be a multiple of 10"))
    return errors
