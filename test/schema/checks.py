"""What a request that meets the schema may be answered: success, or a refusal that no schema can
announce, since it is about other objects or about how fields fit together."""

import re

import schemathesis
from schemathesis.checks import CheckContext

# By their codes: these are about the state of network, host and sandboxes.
SEMANTIC_CODES = {
    "ambiguous_reference",
    "address_outside_subnet",
    "events_expired",
    "fast_path_unavailable",
    "range_mismatch",
    "sandbox_invalid",
    "static_address_not_allowed",
}

# Of invalid_request: what patterns, bounds and oneOf cannot say.
SEMANTIC_MESSAGES = [
    r"is no subnet such as .*; did you mean",  # bits behind the prefix
    r"holds .* addresses",  # loopback, multicast …
    r"is no address a socket can be bound to",  # multicast
    r"a bridge network has at most one IPv4 and one IPv6 subnet",
    r"is false, yet there is an IPv6 subnet",
    r"IPv6 needs at least 1280 bytes",
    r"at most the network's",
    r"or a rising range",
    r"the body says .*, the path",
    r"is there twice",
    r"which has no way in",
    r"has no endpoints: choose a bridge network",
    r"more than one address of",
    r"is on network .* already",
    r"has published port",
    # An id that the stateful tests put where a PUT's path, by its pattern, wants a name.
    r"^/path/ref: must start with",
]

ACCEPTED = {401, 403, 404, 409, 410}


@schemathesis.check
def valid_requests_are_understood(ctx: CheckContext, response, case) -> None:
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if response.status_code < 300 or response.status_code in ACCEPTED:
        return
    problem = response.json()
    if problem["code"] in SEMANTIC_CODES:
        return
    detail = problem["detail"]
    if problem["code"] == "invalid_request" and any(
        re.search(message, detail) for message in SEMANTIC_MESSAGES
    ):
        return
    raise AssertionError(f"The schema allows what the server refuses: {detail}")
