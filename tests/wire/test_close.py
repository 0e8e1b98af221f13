from __future__ import annotations

import pytest
import wsproto.frame_protocol as oracle

from collab.wire.close import CloseCode, is_valid_received_code


@pytest.mark.parametrize(
    ("codes", "valid"),
    [
        (range(1000), False),
        (range(1000, 1004), True),
        (range(1004, 1007), False),
        (range(1007, 1015), True),
        (range(1015, 3000), False),
        (range(3000, 5000), True),
        (range(5000, 65536), False),
    ],
)
def test_a_peer_may_send_the_codes_of_rfc_6455_and_of_its_registry(codes: range, valid: bool) -> None:
    assert {is_valid_received_code(code) for code in codes} == {valid}


def test_what_wsproto_takes_for_a_close_code_is_valid() -> None:
    """Otherwise the service would end with 1002 a close that trio-websocket understands."""
    for code in oracle.CloseReason:
        if code not in oracle.LOCAL_ONLY_CLOSE_REASONS:
            assert is_valid_received_code(code), code


def test_the_service_sends_no_code_that_a_peer_may_not_send() -> None:
    assert all(is_valid_received_code(code) for code in CloseCode)
