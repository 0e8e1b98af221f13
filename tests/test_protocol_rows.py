"""The index of the protocol's tests: for each rule of docs/protocol.md, the tests that show it.

To find the test of a rule, search this file for the rule's words; run what stands there with pytest.
The tables of the page come first, then its sentences, quoted as they are. The tests at the end hold
the index to the page and to the source: a new rule without a test fails here, as does a test that
was renamed, or a row for something that is gone.
"""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest
from test_docs import ERRORS_OF_EVENTS, PACKAGE, PROTOCOL, ROOT, rows, section, subclasses

from collab import errors, server
from collab.settings import AdminSettings, Settings, options_of
from collab.testing import open_service
from collab.web.app import create_app
from collab.wire import messages
from collab.wire.close import CloseCode
from collab.wire.engineio import ENGINE_PATHS

# The parameters of the URL (section Connecting).
PARAMETERS = {
    "user_id": [
        "tests/edge/test_acceptor.py::test_the_user_comes_from_the_query",
        "tests/edge/test_acceptor.py::test_the_user_comes_from_the_path",
        "tests/edge/test_acceptor.py::test_the_user_may_be_in_path_and_query_if_both_agree",
        "tests/edge/test_acceptor.py::test_user_id_and_backend_url_are_needed",
        "tests/edge/test_acceptor.py::test_a_user_id_has_1_to_128_characters",
        "tests/edge/test_acceptor.py::test_a_user_id_has_no_control_or_bidi_characters_and_is_not_longer",
    ],
    "backend_url": [
        "tests/edge/test_acceptor.py::test_user_id_and_backend_url_are_needed",
        "tests/edge/test_acceptor.py::test_a_backend_url_is_absolute_http_or_https_of_at_most_2048_characters",
        "tests/edge/test_acceptor.py::test_another_backend_url_is_refused",
    ],
    "display_name": [
        "tests/edge/test_acceptor.py::test_a_display_name_is_taken_and_is_unknown_user_where_it_is_absent_or_empty",
        "tests/edge/test_acceptor.py::test_a_display_name_has_at_most_128_characters_and_no_control_characters",
    ],
    "presence": [
        "tests/edge/test_acceptor.py::test_presence_is_all_or_none",
        "tests/edge/test_life.py::test_presence_is_all_where_it_is_left_out",
        "tests/edge/test_life.py::test_presence_none_hears_of_nobody",
    ],
    "token": [
        "tests/edge/test_authentication.py::test_a_token_in_the_header_or_in_the_query_lets_its_user_in",
        "tests/edge/test_authentication.py::test_whoever_is_not_who_they_say_is_refused",
    ],
}

# What a client may send (section Messages).
CLIENT_MESSAGES = {
    "collab_event": [
        "tests/edge/test_life.py::test_an_event_of_any_type_reaches_its_recipients_and_is_acknowledged",
        "tests/edge/test_life.py::test_a_message_that_cannot_be_handled_is_an_error_and_the_connection_stays",
    ],
    "ping": [
        "tests/edge/test_life.py::test_ping_is_answered_with_the_time_in_milliseconds",
    ],
    "refresh": [
        "tests/edge/test_authentication.py::test_refresh_lets_a_connection_stay",
        "tests/edge/test_authentication.py::test_a_refresh_with_a_bad_token_changes_nothing",
        "tests/edge/test_authentication.py::test_refresh_is_unknown_where_authentication_is_off",
    ],
}

# The claims of a token (section Tokens).
CLAIMS = {
    "sub": [
        "tests/edge/test_authentication.py::test_the_user_need_not_be_said_again",
        "tests/edge/test_authentication.py::test_whoever_is_not_who_they_say_is_refused",
    ],
    "exp": [
        "tests/policy/test_auth.py::test_a_bad_token_is_not_taken",
        "tests/edge/test_authentication.py::test_a_connection_ends_with_4001_when_its_token_does",
    ],
    "iss`, `aud": [
        "tests/policy/test_auth.py::test_a_bad_token_is_not_taken",
        "tests/cli/test_token.py::test_issuer_and_audience_of_the_settings_are_in_it",
    ],
    "nbf`, `iat": [
        "tests/policy/test_auth.py::test_a_bad_token_is_not_taken",
        "tests/policy/test_auth.py::test_the_leeway_counts_both_ways",
    ],
    "peers": [
        "tests/policy/test_sending.py::test_a_token_names_those_to_whom_its_bearer_may_send",
        "tests/policy/test_auth.py::test_a_claim_of_peers_that_is_no_list_of_names_allows_nobody",
    ],
    "scope": [
        "tests/web/test_admin.py::test_an_operator_comes_by_the_admin_token_or_by_the_scope",
        "tests/web/test_admin.py::test_nobody_else_is_an_operator",
    ],
}

# The members of the `data` of a client's `collab_event`.
EVENT_MEMBERS = {
    "type": [
        "tests/edge/test_life.py::test_an_event_of_any_type_reaches_its_recipients_and_is_acknowledged",
        "tests/edge/test_life.py::test_a_message_that_cannot_be_handled_is_an_error_and_the_connection_stays",
        "tests/wire/test_codec.py::test_a_type_has_1_to_64_characters",
    ],
    "to_users": [
        "tests/edge/test_life.py::test_at_most_1000_recipients_by_default",
        "tests/edge/test_life.py::test_duplicate_recipients_count_once_and_are_relayed_as_sent",
        "tests/edge/test_life.py::test_an_event_to_nobody_is_acknowledged_as_0_of_0",
        "tests/edge/test_life.py::test_an_event_to_oneself_arrives_at_oneself",
        "tests/edge/test_life.py::test_a_message_that_cannot_be_handled_is_an_error_and_the_connection_stays",
        "tests/policy/test_validation.py::test_there_may_be_as_many_recipients_as_the_limit_says",
        "tests/policy/test_validation.py::test_a_recipient_may_have_any_other_character",
    ],
    "from_user": [
        "tests/edge/test_life.py::test_from_user_is_filled_in_and_data_is_an_empty_object_where_they_are_left_out",
        "tests/edge/test_life.py::test_a_message_that_cannot_be_handled_is_an_error_and_the_connection_stays",
        "tests/policy/test_validation.py::test_a_user_may_not_send_in_another_name",
    ],
    "data": [
        "tests/edge/test_life.py::test_data_reaches_the_recipient_byte_for_byte",
        "tests/edge/test_life.py::test_from_user_is_filled_in_and_data_is_an_empty_object_where_they_are_left_out",
    ],
}

# What the service sends (section Messages).
SERVICE_MESSAGES = {
    "connected": [
        "tests/edge/test_life.py::test_connected_comes_first_and_counts_distinct_users",
    ],
    "collab_event": [
        "tests/edge/test_life.py::test_an_event_of_any_type_reaches_its_recipients_and_is_acknowledged",
        "tests/edge/test_life.py::test_other_members_are_dropped_and_a_key_given_twice_means_one_thing",
    ],
    "event_ack": [
        "tests/edge/test_life.py::test_an_event_of_any_type_reaches_its_recipients_and_is_acknowledged",
        "tests/edge/test_life.py::test_delivered_to_is_the_truth_about_those_who_are_gone",
    ],
    "user_online": [
        "tests/edge/test_life.py::test_user_online_tells_of_the_first_connection_of_another_user",
    ],
    "user_offline": [
        "tests/edge/test_life.py::test_user_offline_tells_of_the_last_connection_of_another_user",
    ],
    "pong": [
        "tests/edge/test_life.py::test_ping_is_answered_with_the_time_in_milliseconds",
    ],
    "refreshed": [
        "tests/edge/test_authentication.py::test_refresh_lets_a_connection_stay",
    ],
    "error": [
        "tests/edge/test_life.py::test_a_message_that_cannot_be_handled_is_an_error_and_the_connection_stays",
    ],
    "notice": [
        "tests/web/test_admin.py::test_a_notice_reaches_every_connection",
    ],
    "service_shutdown": [
        "tests/test_server.py::test_draining_tells_everyone_when_to_come_back_and_closes_with_1001",
    ],
}

# What the payloads of the types in use must have (section Validation).
PAYLOADS = {
    "position_shared": [
        "tests/policy/test_schemas.py::test_what_the_seed_sends_passes",
        "tests/policy/test_schemas.py::test_a_payload_that_does_not_fit_is_refused_and_the_field_at_fault_is_named",
        "tests/policy/test_schemas.py::test_a_payload_passes_as_plain_rules_say",
    ],
    "comment_added": [
        "tests/policy/test_schemas.py::test_what_the_seed_sends_passes",
        "tests/policy/test_schemas.py::test_a_payload_that_does_not_fit_is_refused_and_the_field_at_fault_is_named",
        "tests/policy/test_schemas.py::test_a_payload_passes_as_plain_rules_say",
    ],
    "position_updated": [
        "tests/policy/test_schemas.py::test_what_the_seed_sends_passes",
        "tests/policy/test_schemas.py::test_a_payload_that_does_not_fit_is_refused_and_the_field_at_fault_is_named",
        "tests/policy/test_schemas.py::test_a_payload_passes_as_plain_rules_say",
    ],
    "share_revoked": [
        "tests/policy/test_schemas.py::test_what_the_seed_sends_passes",
        "tests/policy/test_schemas.py::test_a_payload_that_does_not_fit_is_refused_and_the_field_at_fault_is_named",
        "tests/policy/test_schemas.py::test_a_payload_passes_as_plain_rules_say",
    ],
}

# The codes of `error` (section Errors).
ERROR_CODES = {
    "invalid_json": [
        "tests/edge/test_life.py::test_a_message_that_cannot_be_handled_is_an_error_and_the_connection_stays",
        "tests/wire/test_codec.py::test_a_text_that_is_nested_too_deeply_is_refused",
        "tests/wire/test_codec.py::test_a_lone_surrogate_is_refused_wherever_it_is",
    ],
    "invalid_message": [
        "tests/edge/test_life.py::test_a_message_that_cannot_be_handled_is_an_error_and_the_connection_stays",
        "tests/edge/test_life.py::test_another_id_is_an_invalid_message_and_is_not_echoed",
    ],
    "unknown_event": [
        "tests/edge/test_life.py::test_a_message_that_cannot_be_handled_is_an_error_and_the_connection_stays",
    ],
    "invalid_event": [
        "tests/edge/test_payloads.py::test_an_event_that_does_not_fit_reaches_nobody_and_its_sender_stays",
        "tests/edge/test_life.py::test_a_message_that_cannot_be_handled_is_an_error_and_the_connection_stays",
    ],
    "from_user_mismatch": [
        "tests/edge/test_life.py::test_a_message_that_cannot_be_handled_is_an_error_and_the_connection_stays",
        "tests/policy/test_validation.py::test_a_user_may_not_send_in_another_name",
    ],
    "too_many_recipients": [
        "tests/edge/test_life.py::test_a_message_that_cannot_be_handled_is_an_error_and_the_connection_stays",
        "tests/edge/test_life.py::test_at_most_1000_recipients_by_default",
    ],
    "unauthenticated": [
        "tests/edge/test_authentication.py::test_a_refresh_with_a_bad_token_changes_nothing",
        "tests/edge/test_authentication.py::test_guessing_tokens_over_one_connection_ends_it",
    ],
    "rate_limited": [
        "tests/edge/test_rates.py::test_events_over_the_rate_get_an_error_with_the_time_to_wait",
        "tests/edge/test_rates.py::test_the_rate_is_the_users_and_not_the_connections",
    ],
}

# The close codes (section Closing).
CLOSE_CODES = {
    1000: [
        "tests/edge/test_life.py::test_1000_normal_a_backend_that_closes_gets_its_close_answered",
    ],
    1001: [
        "tests/test_server.py::test_draining_tells_everyone_when_to_come_back_and_closes_with_1001",
        "tests/system/test_clients.py::test_a_backend_on_websockets_reads_the_notice_of_a_drain_and_1001",
    ],
    1002: [
        "tests/edge/test_life.py::test_a_breach_of_the_protocol_is_closed_with_the_code_that_names_it",
    ],
    1003: [
        "tests/edge/test_life.py::test_a_breach_of_the_protocol_is_closed_with_the_code_that_names_it",
    ],
    1007: [
        "tests/edge/test_life.py::test_a_breach_of_the_protocol_is_closed_with_the_code_that_names_it",
    ],
    1008: [
        "tests/edge/test_life.py::test_a_breach_of_the_protocol_is_closed_with_the_code_that_names_it",
        "tests/faults/test_websocket.py::test_empty_fragments_without_end_are_1008",
        "tests/faults/test_websocket.py::test_a_flood_that_no_client_needs_is_1008_and_others_are_served",
        "tests/edge/test_keepalive.py::test_pings_and_errors_within_their_limits_are_answered_for_ever",
    ],
    1009: [
        "tests/edge/test_life.py::test_a_breach_of_the_protocol_is_closed_with_the_code_that_names_it",
        "tests/edge/test_life.py::test_the_limit_of_a_message_counts_bytes_and_not_characters",
        "tests/faults/test_websocket.py::test_a_peer_in_the_middle_of_a_huge_message_reads_its_1009",
    ],
    1011: [
        "tests/edge/test_life.py::test_1011_a_fault_of_the_service_ends_that_connection_alone",
    ],
    1013: [
        "tests/edge/test_socketio_clients.py::test_1013_a_user_who_connects_too_often_may_come_again_and_is_not_told_to_stay_away",
    ],
    4001: [
        "tests/edge/test_authentication.py::test_a_connection_ends_with_4001_when_its_token_does",
    ],
    4002: [
        "tests/edge/test_acceptor.py::test_over_the_limit_of_one_user_the_oldest_connection_is_closed_with_4002",
    ],
    4003: [
        "tests/edge/test_life.py::test_a_slow_consumer_is_closed_with_4003_and_named_in_the_ack",
        "tests/faults/test_websocket.py::test_a_slow_consumer_that_reads_on_finds_4003",
    ],
    4004: [
        "tests/web/test_admin.py::test_disconnect_closes_every_connection_of_the_user_and_of_nobody_else",
    ],
    4005: [
        "tests/edge/test_keepalive.py::test_4005_comes_when_no_byte_came_within_20_seconds_of_the_ping",
        "tests/edge/test_keepalive.py::test_half_a_frame_and_then_nothing_is_4005",
    ],
}

# The answers to who may not come in, and to requests that cannot be served (section Refusals).
REFUSALS = {
    (400, "missing_parameter"): [
        "tests/edge/test_acceptor.py::test_user_id_and_backend_url_are_needed",
        "tests/web/test_api.py::test_register_without_user_id_or_backend_url_is_400",
    ],
    (400, "invalid_parameter"): [
        "tests/edge/test_acceptor.py::test_a_refusal_names_the_parameter_at_fault",
        "tests/edge/test_acceptor.py::test_a_parameter_given_twice_is_refused",
        "tests/edge/test_acceptor.py::test_a_query_that_is_not_utf8_is_refused",
        "tests/web/test_api.py::test_register_checks_what_a_connection_would_have_to_say",
    ],
    (400, "invalid_json"): [
        "tests/web/test_api.py::test_register_with_a_body_that_is_not_json_is_400",
    ],
    (400, "invalid_event"): [
        "tests/web/test_post_events.py::test_an_event_that_is_none_is_refused_and_reaches_nobody",
    ],
    (400, "too_many_recipients"): [
        "tests/web/test_post_events.py::test_the_cap_on_recipients_holds_and_one_more_is_refused",
    ],
    (400, "bad_request"): [
        "tests/edge/test_door.py::test_a_malformed_head_is_refused_as_json",
        "tests/edge/test_acceptor.py::test_a_malformed_opening_handshake_is_400",
        "tests/edge/test_acceptor.py::test_an_upgrade_by_post_is_400",
        "tests/edge/test_exchange.py::test_a_malformed_chunk_is_400",
        "tests/wire/test_head.py::test_a_tls_client_is_told_at_its_first_byte",
        "tests/faults/test_http.py::test_two_ways_to_read_a_request_and_http_2_are_refused",
    ],
    (401, "unauthenticated"): [
        "tests/edge/test_authentication.py::test_whoever_is_not_who_they_say_is_refused",
        "tests/edge/test_authentication.py::test_the_http_api_asks_for_the_same_tokens",
        "tests/policy/test_auth.py::test_a_bad_token_is_not_taken",
    ],
    (403, "forbidden"): [
        "tests/edge/test_authentication.py::test_whoever_is_not_who_they_say_is_refused",
        "tests/edge/test_authentication.py::test_the_user_of_another_cannot_be_taken_by_a_reconnect",
        "tests/edge/test_authentication.py::test_register_is_for_oneself",
    ],
    (403, "from_user_mismatch"): [
        "tests/web/test_post_events.py::test_with_authentication_the_sender_is_the_tokens_user",
    ],
    (403, "origin_not_allowed"): [
        "tests/web/test_post_events.py::test_a_page_that_may_not_connect_may_not_send_either",
        "tests/edge/test_acceptor.py::test_every_origin_but_null_may_connect_by_default",
        "tests/edge/test_acceptor.py::test_only_an_allowed_origin_may_connect",
        "tests/edge/test_acceptor.py::test_a_client_without_an_origin_can_be_refused",
    ],
    (404, "not_found"): [
        "tests/edge/test_acceptor.py::test_an_upgrade_anywhere_else_is_404",
        "tests/web/test_app.py::test_a_path_that_is_none_is_404_as_json",
        "tests/web/test_api.py::test_a_user_who_is_offline_is_404",
    ],
    (405, "method_not_allowed"): [
        "tests/web/test_app.py::test_a_method_that_is_not_allowed_is_405_as_json_and_names_those_that_are",
    ],
    (408, "request_timeout"): [
        "tests/edge/test_door.py::test_a_head_that_does_not_arrive_in_time_is_408",
        "tests/edge/test_door.py::test_a_dripped_head_is_408_however_steadily_it_drips",
        "tests/edge/test_exchange.py::test_a_body_that_stops_halfway_is_408",
        "tests/edge/test_exchange.py::test_a_dripped_body_is_408_however_steadily_it_drips",
    ],
    (413, "too_large"): [
        "tests/edge/test_door.py::test_a_body_over_the_message_limit_is_413_before_it_is_read",
        "tests/edge/test_exchange.py::test_expect_100_continue_with_a_body_too_large_is_413_at_once",
    ],
    (426, "upgrade_required"): [
        "tests/edge/test_door.py::test_the_websocket_path_without_an_upgrade_is_426",
        "tests/edge/test_acceptor.py::test_a_websocket_version_other_than_13_is_426_and_names_13",
    ],
    (429, "rate_limited"): [
        "tests/web/test_post_events.py::test_a_rate_is_the_users_whether_by_socket_or_not",
        "tests/web/test_post_events.py::test_so_many_events_of_one_user_may_wait_and_so_many_in_all",
        "tests/edge/test_rates.py::test_connects_over_the_rate_are_refused_for_a_while_by_address",
        "tests/edge/test_rates.py::test_connects_over_the_rate_are_refused_by_user",
        "tests/web/test_admin.py::test_who_fails_too_often_is_told_to_wait_by_address",
    ],
    (429, "too_many_connections"): [
        "tests/edge/test_acceptor.py::test_too_many_connections_of_one_address_are_429_with_retry_after",
    ],
    (431, "head_too_large"): [
        "tests/edge/test_door.py::test_a_malformed_head_is_refused_as_json",
        "tests/edge/test_door.py::test_a_head_of_just_under_16_kib_and_100_headers_passes",
    ],
    (500, "internal"): [
        "tests/web/test_app.py::test_a_fault_of_the_service_is_500_as_json_without_its_details",
    ],
    (501, "not_implemented"): [
        "tests/edge/test_door.py::test_a_malformed_head_is_refused_as_json",
        "tests/wire/test_head.py::test_any_transfer_coding_but_chunked_is_refused",
    ],
    (503, "draining"): [
        "tests/edge/test_acceptor.py::test_while_the_service_drains_an_upgrade_is_503_with_retry_after",
        "tests/test_server.py::test_while_draining_health_is_200_ready_is_503_and_everything_else_is_503",
    ],
    (503, "overloaded"): [
        "tests/edge/test_acceptor.py::test_too_many_connections_in_total_are_503_with_retry_after",
        "tests/policy/test_limits.py::test_below_the_limit_on_open_files_there_is_room_kept_for_other_things",
    ],
    (503, "unavailable"): [
        "tests/policy/test_keys.py::test_before_the_first_keys_nobody_is_let_in_and_nobody_is_called_a_liar",
    ],
    (504, "not_acknowledged"): [
        "tests/web/test_post_events.py::test_an_ack_that_never_comes_is_504_and_leaves_nothing_behind",
    ],
    (505, "http_version_not_supported"): [
        "tests/edge/test_door.py::test_a_malformed_head_is_refused_as_json",
        "tests/wire/test_head.py::test_another_version_of_http_is_refused",
    ],
}

# Every method and path of the HTTP side, with each of its answers (section HTTP API).
ENDPOINTS = {
    "GET /": {
        "200": [
            "tests/edge/test_door.py::test_the_root_without_an_upgrade_is_a_page",
        ],
        "503 draining": [
            "tests/test_server.py::test_while_draining_health_is_200_ready_is_503_and_everything_else_is_503",
        ],
    },
    "GET /ws": {
        "426 upgrade_required": [
            "tests/edge/test_door.py::test_the_websocket_path_without_an_upgrade_is_426",
        ],
        "503 draining": [
            "tests/test_server.py::test_while_draining_health_is_200_ready_is_503_and_everything_else_is_503",
        ],
    },
    "GET /ws/{user_id}": {
        "426 upgrade_required": [
            "tests/edge/test_door.py::test_the_websocket_path_without_an_upgrade_is_426",
        ],
    },
    "GET /socket.io/": {
        "200": [
            "tests/web/test_engine_http.py::test_the_handshake_says_what_the_client_must_know",
            "tests/web/test_engine_http.py::test_events_go_both_ways_between_polling_and_the_others",
        ],
        "503 draining": [
            "tests/edge/test_socketio_clients.py::test_a_drain_is_heard_and_ends_in_time",
        ],
    },
    "POST /socket.io/": {
        "200": [
            "tests/web/test_engine_http.py::test_several_packets_come_in_one_post_and_are_taken_in_order",
        ],
        "413 too_large": [
            "tests/web/test_engine_http.py::test_a_body_over_the_limit_is_413_and_the_session_goes_on",
        ],
    },
    "GET /health": {
        "200": [
            "tests/web/test_api.py::test_health_has_the_body_of_the_seed",
            "tests/web/test_api.py::test_health_counts_distinct_users_connections_since_the_start_and_acknowledged_events",
        ],
        "200 while draining": [
            "tests/test_server.py::test_while_draining_health_is_200_ready_is_503_and_everything_else_is_503",
        ],
    },
    "GET /ready": {
        "200": [
            "tests/web/test_api.py::test_ready_says_so",
        ],
        "503 draining": [
            "tests/test_server.py::test_while_draining_health_is_200_ready_is_503_and_everything_else_is_503",
        ],
    },
    "GET /api/users/online": {
        "200": [
            "tests/web/test_api.py::test_the_online_list_has_the_body_of_the_seed",
        ],
        "500 internal": [
            "tests/web/test_app.py::test_a_fault_of_the_service_is_500_as_json_without_its_details",
        ],
        "503 draining": [
            "tests/test_server.py::test_while_draining_health_is_200_ready_is_503_and_everything_else_is_503",
        ],
    },
    "GET /api/users/{user_id}": {
        "200": [
            "tests/web/test_api.py::test_a_user_has_one_row_with_the_time_of_the_first_connection_and_the_rest_of_the_newest",
        ],
        "404 not_found": [
            "tests/web/test_api.py::test_a_user_who_is_offline_is_404",
        ],
        "503 draining": [
            "tests/test_server.py::test_while_draining_health_is_200_ready_is_503_and_everything_else_is_503",
        ],
    },
    "POST /api/register": {
        "200": [
            "tests/web/test_api.py::test_register_answers_how_to_connect_and_registers_nothing",
            "tests/web/test_api.py::test_register_takes_json_whatever_its_content_type_is",
        ],
        "400 missing_parameter": [
            "tests/web/test_api.py::test_register_without_user_id_or_backend_url_is_400",
        ],
        "400 invalid_parameter": [
            "tests/web/test_api.py::test_register_checks_what_a_connection_would_have_to_say",
            "tests/web/test_api.py::test_register_with_json_of_another_kind_is_400",
        ],
        "400 invalid_json": [
            "tests/web/test_api.py::test_register_with_a_body_that_is_not_json_is_400",
        ],
        "413 too_large": [
            "tests/edge/test_door.py::test_a_body_over_the_message_limit_is_413_before_it_is_read",
        ],
        "503 draining": [
            "tests/test_server.py::test_while_draining_health_is_200_ready_is_503_and_everything_else_is_503",
        ],
    },
    "POST /api/events": {
        "200": [
            "tests/web/test_post_events.py::test_an_event_reaches_its_recipients_and_the_answer_is_the_data_of_its_ack",
        ],
        "400 missing_parameter": [
            "tests/web/test_post_events.py::test_an_event_that_is_none_is_refused_and_reaches_nobody",
        ],
        "400 invalid_parameter": [
            "tests/web/test_post_events.py::test_an_event_that_is_none_is_refused_and_reaches_nobody",
        ],
        "400 invalid_event": [
            "tests/web/test_post_events.py::test_an_event_that_is_none_is_refused_and_reaches_nobody",
        ],
        "400 invalid_json": [
            "tests/web/test_post_events.py::test_an_event_that_is_none_is_refused_and_reaches_nobody",
        ],
        "400 too_many_recipients": [
            "tests/web/test_post_events.py::test_the_cap_on_recipients_holds_and_one_more_is_refused",
        ],
        "401 unauthenticated": [
            "tests/web/test_post_events.py::test_with_authentication_the_sender_is_the_tokens_user",
        ],
        "403 from_user_mismatch": [
            "tests/web/test_post_events.py::test_with_authentication_the_sender_is_the_tokens_user",
        ],
        "403 origin_not_allowed": [
            "tests/web/test_post_events.py::test_a_page_that_may_not_connect_may_not_send_either",
        ],
        "413 too_large": [
            "tests/web/test_post_events.py::test_an_event_over_the_limit_of_a_message_is_413",
        ],
        "429 rate_limited": [
            "tests/web/test_post_events.py::test_a_rate_is_the_users_whether_by_socket_or_not",
            "tests/web/test_post_events.py::test_so_many_events_of_one_user_may_wait_and_so_many_in_all",
        ],
        "500 internal": [
            "tests/web/test_post_events.py::test_a_fault_in_routing_is_500_and_the_next_event_goes_on",
        ],
        "503 draining": [
            "tests/web/test_post_events.py::test_while_the_service_drains_no_event_is_taken",
        ],
        "503 overloaded": [
            "tests/web/test_post_events.py::test_so_many_events_of_one_user_may_wait_and_so_many_in_all",
        ],
        "504 not_acknowledged": [
            "tests/web/test_post_events.py::test_an_ack_that_never_comes_is_504_and_leaves_nothing_behind",
        ],
    },
    "GET /api/admin/connections": {
        "200": [
            "tests/web/test_admin.py::test_the_list_of_connections_has_a_row_for_each",
        ],
        "401 unauthenticated": [
            "tests/web/test_admin.py::test_nobody_else_is_an_operator",
        ],
        "403 forbidden": [
            "tests/web/test_admin.py::test_nobody_else_is_an_operator",
        ],
        "404 not_found": [
            "tests/web/test_admin.py::test_without_operators_there_is_no_operator_api",
        ],
        "429 rate_limited": [
            "tests/web/test_admin.py::test_who_fails_too_often_is_told_to_wait_by_address",
        ],
        "503 draining": [
            "tests/web/test_admin.py::test_while_the_service_drains_operators_get_503",
        ],
    },
    "POST /api/admin/users/{user_id}/disconnect": {
        "200": [
            "tests/web/test_admin.py::test_disconnect_closes_every_connection_of_the_user_and_of_nobody_else",
        ],
        "401 unauthenticated": [
            "tests/web/test_admin.py::test_nobody_else_is_an_operator",
        ],
        "403 forbidden": [
            "tests/web/test_admin.py::test_nobody_else_is_an_operator",
        ],
        "404 not_found": [
            "tests/web/test_admin.py::test_without_operators_there_is_no_operator_api",
            "tests/web/test_admin.py::test_disconnect_closes_every_connection_of_the_user_and_of_nobody_else",
        ],
        "429 rate_limited": [
            "tests/web/test_admin.py::test_who_fails_too_often_is_told_to_wait_by_address",
        ],
        "503 draining": [
            "tests/web/test_admin.py::test_while_the_service_drains_operators_get_503",
        ],
    },
    "POST /api/admin/notice": {
        "200": [
            "tests/web/test_admin.py::test_a_notice_reaches_every_connection",
        ],
        "400 missing_parameter": [
            "tests/web/test_admin.py::test_a_notice_that_is_none_reaches_nobody",
        ],
        "400 invalid_parameter": [
            "tests/web/test_admin.py::test_a_notice_that_is_none_reaches_nobody",
        ],
        "400 invalid_json": [
            "tests/web/test_admin.py::test_a_notice_that_is_none_reaches_nobody",
        ],
        "401 unauthenticated": [
            "tests/web/test_admin.py::test_nobody_else_is_an_operator",
        ],
        "403 forbidden": [
            "tests/web/test_admin.py::test_nobody_else_is_an_operator",
        ],
        "404 not_found": [
            "tests/web/test_admin.py::test_without_operators_there_is_no_operator_api",
        ],
        "429 rate_limited": [
            "tests/web/test_admin.py::test_who_fails_too_often_is_told_to_wait_by_address",
        ],
        "503 draining": [
            "tests/web/test_admin.py::test_while_the_service_drains_operators_get_503",
        ],
    },
    "GET /api/admin/limits": {
        "200": [
            "tests/web/test_admin.py::test_the_limits_are_shown_as_plain_numbers_and_no_secret_with_them",
        ],
        "401 unauthenticated": [
            "tests/web/test_admin.py::test_nobody_else_is_an_operator",
        ],
        "403 forbidden": [
            "tests/web/test_admin.py::test_nobody_else_is_an_operator",
        ],
        "404 not_found": [
            "tests/web/test_admin.py::test_without_operators_there_is_no_operator_api",
        ],
        "429 rate_limited": [
            "tests/web/test_admin.py::test_who_fails_too_often_is_told_to_wait_by_address",
        ],
        "503 draining": [
            "tests/web/test_admin.py::test_while_the_service_drains_operators_get_503",
        ],
    },
}

# What happens above each limit (section Limits).
LIMITS = {
    "limits.message_bytes": [
        "tests/edge/test_life.py::test_the_limit_of_a_message_counts_bytes_and_not_characters",
        "tests/edge/test_door.py::test_a_body_over_the_message_limit_is_413_before_it_is_read",
    ],
    "limits.max_recipients": [
        "tests/edge/test_life.py::test_at_most_1000_recipients_by_default",
        "tests/edge/test_life.py::test_a_message_that_cannot_be_handled_is_an_error_and_the_connection_stays",
    ],
    "limits.mailbox_messages": [
        "tests/edge/test_life.py::test_a_slow_consumer_is_closed_with_4003_and_named_in_the_ack",
        "tests/core/test_mailbox.py::test_a_mailbox_holds_so_many_messages",
    ],
    "limits.mailbox_bytes": [
        "tests/core/test_mailbox.py::test_the_bounds_come_from_the_settings",
        "tests/core/test_mailbox.py::test_a_mailbox_holds_so_many_bytes",
        "tests/edge/test_life.py::test_an_event_larger_than_the_whole_mailbox_gets_in_where_it_is_empty",
    ],
    "limits.slow_consumer": [
        "tests/edge/test_life.py::test_a_slow_consumer_is_closed_with_4003_and_named_in_the_ack",
        "tests/edge/test_life.py::test_a_recipient_that_reads_again_in_time_gets_everything_in_order",
    ],
    "limits.in_flight": [
        "tests/edge/test_life.py::test_a_sender_whose_events_wait_is_read_from_no_more_than_its_window",
    ],
    "limits.control_frames": [
        "tests/edge/test_keepalive.py::test_pings_and_errors_within_their_limits_are_answered_for_ever",
        "tests/faults/test_websocket.py::test_a_flood_that_no_client_needs_is_1008_and_others_are_served",
        "tests/faults/test_websocket.py::test_a_ping_flood_that_is_allowed_gets_its_pongs_and_others_are_served",
    ],
    "limits.errors": [
        "tests/edge/test_keepalive.py::test_pings_and_errors_within_their_limits_are_answered_for_ever",
        "tests/faults/test_websocket.py::test_a_flood_that_no_client_needs_is_1008_and_others_are_served",
    ],
    "limits.events_per_second": [
        "tests/edge/test_rates.py::test_events_over_the_rate_get_an_error_with_the_time_to_wait",
    ],
    "limits.burst": [
        "tests/edge/test_rates.py::test_events_over_the_rate_get_an_error_with_the_time_to_wait",
    ],
    "limits.connects_per_second": [
        "tests/edge/test_rates.py::test_connects_over_the_rate_are_refused_for_a_while_by_address",
        "tests/edge/test_rates.py::test_connects_over_the_rate_are_refused_by_user",
        "tests/edge/test_rates.py::test_tls_handshakes_far_over_the_rate_of_connects_are_not_begun",
    ],
    "limits.connections_per_user": [
        "tests/edge/test_acceptor.py::test_by_default_one_user_holds_eight_connections",
        "tests/edge/test_acceptor.py::test_over_the_limit_of_one_user_the_oldest_connection_is_closed_with_4002",
        "tests/edge/test_acceptor.py::test_the_limit_of_one_user_can_be_taken_away",
    ],
    "limits.connections_per_address": [
        "tests/edge/test_acceptor.py::test_too_many_connections_of_one_address_are_429_with_retry_after",
    ],
    "limits.connections": [
        "tests/edge/test_acceptor.py::test_too_many_connections_in_total_are_503_with_retry_after",
        "tests/policy/test_limits.py::test_below_the_limit_on_open_files_there_is_room_kept_for_other_things",
    ],
    "timeouts.handshake": [
        "tests/edge/test_door.py::test_a_head_that_does_not_arrive_in_time_is_408",
        "tests/edge/test_door.py::test_a_silent_connection_is_ended_after_the_handshake_timeout",
        "tests/edge/test_acceptor.py::test_a_peer_that_does_not_take_the_answer_to_its_handshake_is_dropped_in_time",
    ],
    "timeouts.write": [
        "tests/edge/test_life.py::test_a_peer_that_reads_nothing_for_the_write_timeout_is_dropped",
        "tests/edge/test_exchange.py::test_a_response_that_is_not_read_is_given_up_after_the_write_timeout",
    ],
    "timeouts.close": [
        "tests/faults/test_websocket.py::test_a_peer_that_answers_no_close_frame_is_closed_by_force",
    ],
    "timeouts.ping_interval": [
        "tests/edge/test_keepalive.py::test_a_ping_comes_after_25_seconds_of_silence",
        "tests/edge/test_keepalive.py::test_the_times_are_those_that_are_set",
    ],
    "timeouts.ping_timeout": [
        "tests/edge/test_keepalive.py::test_4005_comes_when_no_byte_came_within_20_seconds_of_the_ping",
        "tests/edge/test_keepalive.py::test_the_times_are_those_that_are_set",
    ],
}

SENTENCES = {
    "": {
        "Both are on one TCP port, 9000 unless set otherwise.": [
            "tests/edge/test_door.py::test_http_and_websocket_are_served_on_one_port",
            "tests/settings/test_loading.py::test_the_defaults_are_those_of_the_protocol",
        ],
        "Times are UTC, ISO 8601 with `Z`, in whole seconds, unless a field says otherwise.": [
            "tests/web/test_api.py::test_the_online_list_has_the_body_of_the_seed",
            "tests/test_server.py::test_draining_tells_everyone_when_to_come_back_and_closes_with_1001",
        ],
        "Ids are compared character by character: `Ada` and `ada` are two users.": [
            "tests/edge/test_acceptor.py::test_ids_are_compared_character_by_character",
        ],
    },
    "Connecting": {
        "A backend opens one WebSocket (RFC 6455, version 13)": [
            "tests/edge/test_acceptor.py::test_a_websocket_version_other_than_13_is_426_and_names_13",
            "tests/edge/test_acceptor.py::test_the_upgrade_headers_may_be_spelt_and_listed_as_clients_do",
        ],
        (
            "Where the service has a certificate (`tls.cert_file`) its one port speaks TLS 1.2 and 1.3 "
            "alone: the URLs begin with `wss://` and `https://`."
        ): [
            "tests/edge/test_tls.py::test_wss_and_https_are_served_on_the_one_port",
            "tests/edge/test_tls.py::test_tls_1_2_and_1_3_are_spoken",
            "tests/edge/test_tls.py::test_older_versions_are_refused",
        ],
        "HTTP without TLS gets no answer there.": [
            "tests/edge/test_tls.py::test_what_is_not_tls_gets_no_http_answer_and_is_logged_at_debug_alone",
        ],
        (
            "With `tls.client_ca_file` a client needs a certificate of its own from that authority; "
            "with `tls.client_auth` set to `optional` it may come without one."
        ): [
            "tests/edge/test_tls.py::test_where_a_certificate_is_required_none_and_one_of_another_authority_are_refused",
            "tests/edge/test_tls.py::test_where_a_certificate_is_optional_none_is_let_in_and_one_of_another_authority_is_not",
        ],
        "The path is `/`, `/ws` or `/ws/{user_id}`.": [
            "tests/edge/test_acceptor.py::test_the_user_comes_from_the_query",
            "tests/edge/test_acceptor.py::test_the_user_comes_from_the_path",
            "tests/edge/test_acceptor.py::test_an_upgrade_anywhere_else_is_404",
        ],
        "Values are percent-encoded UTF-8.": [
            "tests/edge/test_acceptor.py::test_the_user_comes_from_the_path",
            "tests/edge/test_acceptor.py::test_a_query_that_is_not_utf8_is_refused",
            "tests/wire/test_identity.py::test_a_path_that_is_not_utf8_is_refused",
        ],
        "An empty value counts as none.": [
            "tests/edge/test_acceptor.py::test_an_empty_value_counts_as_none",
            "tests/edge/test_acceptor.py::test_user_id_and_backend_url_are_needed",
        ],
        "A parameter given twice is an error.": [
            "tests/edge/test_acceptor.py::test_a_parameter_given_twice_is_refused",
        ],
        "Other parameters are ignored.": [
            "tests/edge/test_acceptor.py::test_an_unknown_parameter_is_ignored",
        ],
        (
            "Who may not come in is told so before the upgrade, by an HTTP status and a JSON body: "
            "see Refusals."
        ): [
            "tests/edge/test_acceptor.py::test_user_id_and_backend_url_are_needed",
            "tests/edge/test_acceptor.py::test_a_refused_upgrade_takes_no_place",
        ],
        "The service offers no WebSocket extension and no subprotocol.": [
            "tests/edge/test_acceptor.py::test_compression_is_never_agreed_to",
            "tests/edge/test_acceptor.py::test_no_subprotocol_is_agreed_to",
        ],
        "One user may have several connections, for example while a backend restarts.": [
            "tests/edge/test_acceptor.py::test_by_default_one_user_holds_eight_connections",
        ],
        "All of them get the user's events.": [
            "tests/edge/test_life.py::test_an_event_reaches_every_connection_of_its_recipient_and_counts_once",
        ],
        "Above `limits.connections_per_user` the newcomer stays and the oldest is closed with 4002.": [
            "tests/edge/test_acceptor.py::test_over_the_limit_of_one_user_the_oldest_connection_is_closed_with_4002",
        ],
    },
    "Tokens": {
        'With `auth.mode = "jwt"`, who connects brings a JSON Web Token (RFC 7519) that says who it is: '
        "in the header `Authorization: Bearer <token>`, or as `token=` in the query.": [
            "tests/edge/test_authentication.py::test_a_token_in_the_header_or_in_the_query_lets_its_user_in",
            "tests/edge/test_authentication.py::test_whoever_is_not_who_they_say_is_refused",
        ],
        "The HTTP API asks for the same, but for `/health` and `/ready`; the operator API has rules of its "
        "own.": [
            "tests/edge/test_authentication.py::test_the_http_api_asks_for_the_same_tokens",
            "tests/web/test_admin.py::test_nobody_else_is_an_operator",
        ],
        "Signatures are HS256 with `auth.secret`; or RS256, ES256 or EdDSA with the key in "
        "`auth.public_key_file` or the keys at `auth.jwks_url`.": [
            "tests/policy/test_auth.py::test_a_public_key_takes_tokens_of_its_own_kind_alone",
            "tests/policy/test_keys.py::test_a_key_is_found_by_its_id_and_the_only_one_without",
        ],
        "A token's own word on its algorithm counts for nothing.": [
            "tests/policy/test_auth.py::test_a_bad_token_is_not_taken",
            "tests/policy/test_auth.py::test_a_public_key_is_no_secret",
        ],
        "`auth.leeway` is for clocks that differ.": [
            "tests/policy/test_auth.py::test_the_leeway_counts_both_ways",
        ],
        "When the token ends, the connection is closed with 4001.": [
            "tests/edge/test_authentication.py::test_a_connection_ends_with_4001_when_its_token_does",
        ],
        "Before that, a client can send a new one with `refresh` and stay.": [
            "tests/edge/test_authentication.py::test_refresh_lets_a_connection_stay",
        ],
    },
    "Messages": {
        "`notice` is what an operator has to say to everybody.": [
            "tests/web/test_admin.py::test_a_notice_reaches_every_connection",
        ],
        "`refresh` brings a new token for the same user.": [
            "tests/edge/test_authentication.py::test_refresh_lets_a_connection_stay",
        ],
        "The answer is `refreshed`, or `error`; after that one the old token goes on until its own end.": [
            "tests/edge/test_authentication.py::test_a_refresh_with_a_bad_token_changes_nothing",
        ],
        "`refreshed` answers `refresh`.": [
            "tests/edge/test_authentication.py::test_refresh_lets_a_connection_stay",
        ],
        "`expires_at` is when the new token ends.": [
            "tests/edge/test_authentication.py::test_refresh_lets_a_connection_stay",
        ],
        "Every message is one text frame with one JSON object:": [
            "tests/wire/test_plain.py::test_a_text_is_one_message",
            "tests/wire/test_plain.py::test_a_message_is_one_text_frame",
            "tests/edge/test_life.py::test_a_message_that_cannot_be_handled_is_an_error_and_the_connection_stays",
        ],
        ("A client may add `id`: a string of at most 64 characters or an integer of at most 64 digits."): [
            "tests/edge/test_life.py::test_ack_pong_and_error_carry_the_id_back",
            "tests/edge/test_life.py::test_another_id_is_an_invalid_message_and_is_not_echoed",
        ],
        "The reply to that message has the same `id`.": [
            "tests/edge/test_life.py::test_ack_pong_and_error_carry_the_id_back",
            "tests/edge/test_life.py::test_without_an_id_no_answer_has_one",
        ],
        "Other members are ignored.": [
            "tests/edge/test_life.py::test_other_members_are_dropped_and_a_key_given_twice_means_one_thing",
        ],
        "A message may be sent in several WebSocket fragments.": [
            "tests/edge/test_life.py::test_events_and_acks_keep_their_order_also_among_fragmented_messages",
        ],
        "Binary frames are not taken.": [
            "tests/edge/test_life.py::test_a_breach_of_the_protocol_is_closed_with_the_code_that_names_it",
        ],
        "The answer is `event_ack`, or `error`.": [
            "tests/edge/test_life.py::test_an_event_of_any_type_reaches_its_recipients_and_is_acknowledged",
            "tests/edge/test_life.py::test_a_message_that_cannot_be_handled_is_an_error_and_the_connection_stays",
        ],
        "Others are routed in the same way, unless `events.validation` is `strict`: see Validation.": [
            "tests/edge/test_life.py::test_an_event_of_any_type_reaches_its_recipients_and_is_acknowledged",
        ],
        "`ping` asks for a `pong`. `data` may be left out.": [
            "tests/edge/test_life.py::test_ping_is_answered_with_the_time_in_milliseconds",
        ],
        "`connected` is the first message on every connection.": [
            "tests/edge/test_life.py::test_connected_comes_first_and_counts_distinct_users",
        ],
        "`active_users` is the number of users online to whom this one may send, itself included.": [
            "tests/edge/test_permissions.py::test_one_is_told_the_number_of_those_alone_to_whom_one_may_send",
            "tests/edge/test_life.py::test_connected_comes_first_and_counts_distinct_users",
        ],
        "`from_user` is always there, and always true.": [
            "tests/edge/test_life.py::test_from_user_is_filled_in_and_data_is_an_empty_object_where_they_are_left_out",
            "tests/edge/test_life.py::test_a_message_that_cannot_be_handled_is_an_error_and_the_connection_stays",
        ],
        (
            "`type`, `to_users` and `data` are as the sender wrote them; the JSON of `data` is the "
            "same byte for byte."
        ): [
            "tests/edge/test_life.py::test_duplicate_recipients_count_once_and_are_relayed_as_sent",
            "tests/edge/test_life.py::test_data_reaches_the_recipient_byte_for_byte",
        ],
        "Other members that the sender put next to them are dropped.": [
            "tests/edge/test_life.py::test_other_members_are_dropped_and_a_key_given_twice_means_one_thing",
        ],
        "`event_ack` answers each `collab_event` that was routed.": [
            "tests/edge/test_life.py::test_an_event_of_any_type_reaches_its_recipients_and_is_acknowledged",
            "tests/core/test_router.py::test_only_the_sending_connection_gets_the_ack",
        ],
        "`undelivered` is there only when some recipient did not get the event.": [
            "tests/edge/test_life.py::test_an_event_of_any_type_reaches_its_recipients_and_is_acknowledged",
            "tests/edge/test_life.py::test_delivered_to_is_the_truth_about_those_who_are_gone",
        ],
        "`pong` answers `ping`. `timestamp` is in milliseconds since the epoch.": [
            "tests/edge/test_life.py::test_ping_is_answered_with_the_time_in_milliseconds",
        ],
        "`error` answers a message that could not be handled: see Errors.": [
            "tests/edge/test_life.py::test_a_message_that_cannot_be_handled_is_an_error_and_the_connection_stays",
        ],
        "`service_shutdown` says that the service is going down. The close code 1001 follows.": [
            "tests/test_server.py::test_draining_tells_everyone_when_to_come_back_and_closes_with_1001",
        ],
        (
            "Come back `reconnect_in_ms` milliseconds later: the number differs between clients, so "
            "that they do not all return at once."
        ): [
            "tests/test_server.py::test_draining_tells_everyone_when_to_come_back_and_closes_with_1001",
            "tests/test_server.py::test_reconnects_are_spread_over_the_time_that_is_set",
        ],
    },
    "Delivery and order": {
        "With `policy.send` set, a recipient to whom the sender may not send counts as undelivered, just as "
        "one who is offline.": [
            "tests/edge/test_permissions.py::test_whom_one_may_not_reach_is_undelivered_as_if_offline",
        ],
        "To oneself one may always send.": [
            "tests/edge/test_permissions.py::test_whom_one_may_not_reach_is_undelivered_as_if_offline",
        ],
        "The service stores nothing. An event reaches the recipients who are online, or nobody.": [
            "tests/edge/test_life.py::test_an_event_to_a_user_who_is_offline_is_not_kept_for_later",
        ],
        "`delivered_to` counts recipients, not connections:": [
            "tests/edge/test_life.py::test_an_event_reaches_every_connection_of_its_recipient_and_counts_once",
        ],
        "those for whom the event is on its way on at least one live connection.": [
            "tests/edge/test_life.py::test_a_recipient_with_one_stalled_connection_counts_by_its_other_one",
            "tests/edge/test_life.py::test_delivered_to_is_the_truth_about_those_who_are_gone",
        ],
        "It does not say that the other backend has read it.": [
            "tests/edge/test_life.py::test_a_slow_consumer_is_closed_with_4003_and_named_in_the_ack",
        ],
        "A recipient that stays connected gets every event that was counted.": [
            "tests/faults/test_conservation.py::test_every_event_is_delivered_or_named_undelivered",
        ],
        "`total_recipients` counts the different ids in `to_users`.": [
            "tests/edge/test_life.py::test_duplicate_recipients_count_once_and_are_relayed_as_sent",
        ],
        "`undelivered` lists the ids of those who are offline or could not keep up.": [
            "tests/edge/test_life.py::test_delivered_to_is_the_truth_about_those_who_are_gone",
            "tests/edge/test_life.py::test_a_slow_consumer_is_closed_with_4003_and_named_in_the_ack",
        ],
        "An event to nobody is acknowledged with 0 of 0.": [
            "tests/edge/test_life.py::test_an_event_to_nobody_is_acknowledged_as_0_of_0",
        ],
        "Events from one connection to one recipient arrive in the order in which they were sent.": [
            "tests/edge/test_life.py::test_events_and_acks_keep_their_order_also_among_fragmented_messages",
            "tests/faults/test_conservation.py::test_every_event_is_delivered_or_named_undelivered",
        ],
        "Acks come in the order of their events.": [
            "tests/edge/test_life.py::test_events_and_acks_keep_their_order_also_among_fragmented_messages",
            "tests/core/test_router.py::test_an_ack_that_is_due_waits_for_the_one_before_it",
        ],
        ("A `pong` or an `error` may overtake the ack of an earlier event: tell replies apart by `id`."): [
            "tests/edge/test_life.py::test_pong_and_error_may_overtake_the_ack_of_an_earlier_event",
        ],
        (
            "A recipient that reads too slowly has a queue of `limits.mailbox_messages` messages and "
            "`limits.mailbox_bytes` bytes."
        ): [
            "tests/edge/test_life.py::test_a_slow_consumer_is_closed_with_4003_and_named_in_the_ack",
            "tests/core/test_mailbox.py::test_a_mailbox_holds_so_many_messages",
            "tests/core/test_mailbox.py::test_a_mailbox_holds_so_many_bytes",
        ],
        ("While it is full, acks of events for that recipient wait, for `limits.slow_consumer` at most."): [
            "tests/edge/test_life.py::test_a_slow_consumer_is_closed_with_4003_and_named_in_the_ack",
            "tests/edge/test_life.py::test_a_recipient_that_reads_again_in_time_gets_everything_in_order",
        ],
        (
            "Then its connection is closed with 4003, and the events that did not get in count as "
            "undelivered."
        ): [
            "tests/edge/test_life.py::test_a_slow_consumer_is_closed_with_4003_and_named_in_the_ack",
        ],
        (
            "So it is, without waiting longer, once what waits has more than four times "
            "`limits.mailbox_bytes`, and than 1 MiB."
        ): [
            "tests/core/test_mailbox.py::test_a_mailbox_for_which_too_much_waits_is_closed",
        ],
        "Other recipients get theirs without waiting.": [
            "tests/core/test_router.py::test_one_full_recipient_holds_up_nobody_else",
        ],
        (
            "A sender may have `limits.in_flight` events without an ack. Beyond that the service "
            "stops reading from it until an ack is due; what one read brought is routed all the same. "
            "Nothing is lost by that, and nothing needs to be done."
        ): [
            "tests/edge/test_life.py::test_a_sender_whose_events_wait_is_read_from_no_more_than_its_window",
        ],
    },
    "Presence": {
        "With `policy.send` set, one is told of those alone to whom one may send, and they alone are in the "
        "answers of the HTTP API.": [
            "tests/edge/test_permissions.py::test_presence_tells_of_those_alone_to_whom_one_may_send",
            "tests/edge/test_permissions.py::test_the_api_shows_those_alone_to_whom_one_may_send",
        ],
        "`user_online` goes to all other users when a user's first connection comes up,": [
            "tests/edge/test_life.py::test_user_online_tells_of_the_first_connection_of_another_user",
        ],
        "`user_offline` when the last one has ended.": [
            "tests/edge/test_life.py::test_user_offline_tells_of_the_last_connection_of_another_user",
        ],
        "So a restart that overlaps causes neither.": [
            "tests/core/test_membership.py::test_a_reconnect_before_the_old_connection_ended_is_no_news",
        ],
        "There is none about oneself,": [
            "tests/core/test_presence.py::test_nobody_is_told_of_themselves_on_any_of_their_connections",
        ],
        "none for the users who were online before": [
            "tests/core/test_presence.py::test_a_newcomer_is_told_what_follows_its_own_arrival",
        ],
        "and no `user_offline` while the service goes down.": [
            "tests/test_server.py::test_nobody_goes_offline_when_the_service_does",
        ],
        "A connection with `presence=none` gets none.": [
            "tests/edge/test_life.py::test_presence_none_hears_of_nobody",
        ],
    },
    "Keepalive": {
        (
            "The service sends a WebSocket ping to a connection from which it has heard nothing for "
            "`timeouts.ping_interval`."
        ): [
            "tests/edge/test_keepalive.py::test_a_ping_comes_after_25_seconds_of_silence",
            "tests/edge/test_keepalive.py::test_a_backend_that_talks_is_not_pinged",
        ],
        "If not one byte comes within `timeouts.ping_timeout`, it closes the connection with 4005.": [
            "tests/edge/test_keepalive.py::test_4005_comes_when_no_byte_came_within_20_seconds_of_the_ping",
            "tests/edge/test_keepalive.py::test_any_byte_after_the_ping_is_an_answer",
            "tests/edge/test_keepalive.py::test_a_backend_that_answers_pings_stays_for_ever",
        ],
        "Pings from the client are answered.": [
            "tests/edge/test_life.py::test_a_websocket_ping_is_answered_with_its_own_payload",
        ],
    },
    "Validation": {
        (
            "With `events.validation` set to `known` or `strict`, the `data` of an event must be as its type "
            "says, and the answer to any other is `invalid_event`."
        ): [
            "tests/edge/test_payloads.py::test_an_event_that_does_not_fit_reaches_nobody_and_its_sender_stays",
            "tests/policy/test_schemas.py::test_a_payload_that_does_not_fit_is_refused_and_the_field_at_fault_is_named",
        ],
        "Members that are not listed may be anything.": [
            "tests/policy/test_schemas.py::test_a_payload_passes_as_plain_rules_say",
        ],
        "`position_id` has 1 to 256 characters.": [
            "tests/policy/test_schemas.py::test_a_payload_that_does_not_fit_is_refused_and_the_field_at_fault_is_named",
        ],
        "An operator can replace these rules and add types.": [
            "tests/policy/test_schemas.py::test_a_file_adds_its_type",
            "tests/policy/test_schemas.py::test_a_file_replaces_the_schema_of_a_built_in_type",
        ],
        (
            "With `known` an event of a type without rules is routed as it is; with `strict` it is "
            "`invalid_event`."
        ): [
            "tests/policy/test_schemas.py::test_another_type_passes_unless_validation_is_strict",
        ],
        (
            "What one parser may read in another way than the next is refused in such `data`: the same "
            "member twice in an object, a number too large for a double or with more than 4,300 digits, and "
            "more than 64 levels of objects and lists."
        ): [
            "tests/policy/test_schemas.py::test_a_member_that_is_given_twice_is_refused_wherever_it_is",
            "tests/policy/test_schemas.py::test_a_recipient_that_takes_the_first_of_two_is_not_fooled",
            "tests/policy/test_schemas.py::test_a_number_that_is_not_the_same_everywhere_is_refused",
            "tests/policy/test_schemas.py::test_a_payload_has_at_most_64_levels",
        ],
    },
    "Errors": {
        (
            "An `error` answers one message. The connection stays open, and nothing of that message "
            "was routed."
        ): [
            "tests/edge/test_life.py::test_a_message_that_cannot_be_handled_is_an_error_and_the_connection_stays",
        ],
        "`error` names the field at fault.": [
            "tests/edge/test_life.py::test_a_message_that_cannot_be_handled_is_an_error_and_the_connection_stays",
            "tests/wire/test_codec.py::test_an_error_names_the_field_at_fault",
        ],
        "The message's `id` comes back unless it could not be read.": [
            "tests/edge/test_life.py::test_ack_pong_and_error_carry_the_id_back",
            "tests/wire/test_codec.py::test_an_error_carries_the_id_of_its_message",
            "tests/wire/test_codec.py::test_an_error_has_no_id_where_none_can_be_told",
        ],
        "Sending the same message again gives the same error, but for `rate_limited`: there `retry_after_ms` "
        "says when it may be taken.": [
            "tests/edge/test_life.py::test_the_same_message_again_gives_the_same_error",
        ],
        "An event to more than ten recipients counts once for each ten of them.": [
            "tests/edge/test_rates.py::test_an_event_to_many_counts_once_for_each_ten_of_them",
        ],
    },
    "Closing": {
        "The close frame has a code and a short sentence.": [
            "tests/edge/test_life.py::test_a_breach_of_the_protocol_is_closed_with_the_code_that_names_it",
        ],
        "This is also how a client ends that takes nothing for `timeouts.write`.": [
            "tests/edge/test_life.py::test_a_peer_that_reads_nothing_for_the_write_timeout_is_dropped",
        ],
        "Before it closes, the service sends what is queued for the client;": [
            "tests/edge/test_life.py::test_what_is_queued_is_sent_before_the_close_frame",
        ],
        "after 4003 it drops it.": [
            "tests/edge/test_life.py::test_what_is_queued_for_a_slow_consumer_is_dropped",
        ],
        "It waits `timeouts.close` for the client's own close frame.": [
            "tests/faults/test_websocket.py::test_a_peer_that_answers_no_close_frame_is_closed_by_force",
        ],
    },
    "HTTP API": {
        "Every answer but the page at `/` is JSON.": [
            "tests/web/test_app.py::test_every_answer_but_the_page_is_json",
        ],
        "Every connection is closed after its answer.": [
            "tests/edge/test_door.py::test_every_http_response_closes_its_connection",
        ],
        "Scripts of the pages in `http.cors_origins` (all by default) may read the answers.": [
            "tests/web/test_app.py::test_every_route_may_be_read_from_any_origin_by_default",
            "tests/web/test_app.py::test_errors_may_be_read_from_any_origin_too",
            "tests/web/test_app.py::test_only_the_origins_that_are_set_may_read",
        ],
        "An error has a status of 4xx or 5xx and this body:": [
            "tests/web/test_app.py::test_a_path_that_is_none_is_404_as_json",
            "tests/web/test_api.py::test_register_without_user_id_or_backend_url_is_400",
        ],
        "`GET /health`: 200 while the process serves.": [
            "tests/web/test_api.py::test_health_has_the_body_of_the_seed",
            "tests/test_server.py::test_while_draining_health_is_200_ready_is_503_and_everything_else_is_503",
        ],
        "`uptime` is in whole seconds.": [
            "tests/web/test_api.py::test_uptime_is_whole_seconds",
        ],
        (
            "`active_users` counts users, `total_connections` WebSocket connections since the start, "
            "`total_events_routed` acknowledged events since the start."
        ): [
            "tests/web/test_api.py::test_health_counts_distinct_users_connections_since_the_start_and_acknowledged_events",
        ],
        "`GET /ready`: 200 while new connections are taken.": [
            "tests/web/test_api.py::test_ready_says_so",
        ],
        'While the service goes down 503 and `{"status": "draining"}`.': [
            "tests/test_server.py::test_while_draining_health_is_200_ready_is_503_and_everything_else_is_503",
        ],
        "`GET /api/users/online`: a row for each user.": [
            "tests/web/test_api.py::test_the_online_list_has_the_body_of_the_seed",
        ],
        "`connected_at` is that of the oldest connection, the rest that of the newest.": [
            "tests/web/test_api.py::test_a_user_has_one_row_with_the_time_of_the_first_connection_and_the_rest_of_the_newest",
        ],
        "`GET /api/users/{user_id}`: that user's row, or 404 `not_found`.": [
            "tests/web/test_api.py::test_a_user_has_one_row_with_the_time_of_the_first_connection_and_the_rest_of_the_newest",
            "tests/web/test_api.py::test_a_user_who_is_offline_is_404",
        ],
        "The id is percent-encoded.": [
            "tests/web/test_api.py::test_a_user_with_an_unusual_id_has_a_row",
            "tests/web/test_admin.py::test_no_user_has_an_id_that_is_out_of_reach",
        ],
        "A user whose id is `online` or begins with `/` is found in the list only.": [
            "tests/web/test_api.py::test_a_user_called_online_or_beginning_with_a_slash_is_found_in_the_list_only",
        ],
        "`POST /api/register`: the URL to connect to.": [
            "tests/web/test_api.py::test_the_url_to_connect_to_really_reaches_the_service",
        ],
        "It registers nothing; connecting does. `display_name` may be left out.": [
            "tests/web/test_api.py::test_register_answers_how_to_connect_and_registers_nothing",
        ],
        ("`collab_ws_url` is `server.public_url` where that is set, else the host of the request itself."): [
            "tests/web/test_api.py::test_the_url_to_connect_to_is_the_public_one_where_it_is_set",
            "tests/web/test_api.py::test_the_url_to_connect_to_is_made_of_the_host_that_was_asked",
            "tests/web/test_api.py::test_the_url_to_connect_to_is_the_services_own_where_no_host_was_said",
        ],
        "No answer may be stored by a cache, guessed to be of another type, shown in a frame, or run a "
        "script.": [
            "tests/web/test_headers.py::test_every_answer_of_the_api_has_them",
            "tests/web/test_headers.py::test_the_refusals_of_the_door_have_them",
            "tests/web/test_headers.py::test_the_page_may_use_its_own_style_and_nothing_else",
        ],
        "`POST /api/events`: the body is the `data` of a `collab_event`, the answer that of its "
        "`event_ack`.": [
            "tests/web/test_post_events.py::test_an_event_reaches_its_recipients_and_the_answer_is_the_data_of_its_ack",
            "tests/web/test_post_events.py::test_data_is_relayed_byte_for_byte",
        ],
        "Without authentication `from_user` is needed; with it the sender is the token's user.": [
            "tests/web/test_post_events.py::test_with_authentication_the_sender_is_the_tokens_user",
            "tests/web/test_post_events.py::test_an_event_that_is_none_is_refused_and_reaches_nobody",
        ],
        "The rules, the limits and the meaning of the answer are those of an event over a WebSocket;": [
            "tests/web/test_post_events.py::test_an_event_that_is_none_is_refused_and_reaches_nobody",
            "tests/web/test_post_events.py::test_the_cap_on_recipients_holds_and_one_more_is_refused",
            "tests/web/test_post_events.py::test_whom_one_may_not_reach_is_undelivered_as_over_a_socket",
            "tests/web/test_post_events.py::test_the_answer_waits_for_a_slow_consumer_and_tells_the_truth",
        ],
        "`limits.events_per_second` counts both.": [
            "tests/web/test_post_events.py::test_a_rate_is_the_users_whether_by_socket_or_not",
        ],
        "The answer waits for the ack.": [
            "tests/web/test_post_events.py::test_the_answer_waits_for_a_slow_consumer_and_tells_the_truth",
            "tests/web/test_post_events.py::test_a_recipient_that_reads_again_in_time_gets_it",
        ],
        "An event sent after the answer to another arrives after it.": [
            "tests/web/test_post_events.py::test_events_sent_one_after_the_other_arrive_in_that_order",
        ],
        "An `Origin` must be one that may open a WebSocket.": [
            "tests/web/test_post_events.py::test_a_page_that_may_not_connect_may_not_send_either",
        ],
        "An event over a rate is told when it may be taken in `Retry-After` and, by the millisecond, in "
        "the body:": [
            "tests/web/test_post_events.py::test_a_rate_is_the_users_whether_by_socket_or_not",
        ],
        "Operators bring `admin.token`, or a token with the scope `admin`, as `Authorization: Bearer`; "
        "never in the query.": [
            "tests/web/test_admin.py::test_an_operator_comes_by_the_admin_token_or_by_the_scope",
            "tests/web/test_admin.py::test_an_operators_token_is_never_taken_from_the_query",
        ],
        "`admin.token` is nobody's token anywhere else.": [
            "tests/web/test_admin.py::test_the_admin_token_is_no_users_token",
        ],
        "Where there is neither `admin.token` nor authentication, these paths do not exist.": [
            "tests/web/test_admin.py::test_without_operators_there_is_no_operator_api",
        ],
        "Each act is noted in the log, with who did it and to whom.": [
            "tests/web/test_admin.py::test_every_act_is_noted_with_who_did_what_to_whom",
        ],
        "`GET /api/admin/connections`: a row for each connection.": [
            "tests/web/test_admin.py::test_the_list_of_connections_has_a_row_for_each",
        ],
        "What is queued are messages that were not sent yet; `in_flight` are events without an ack.": [
            "tests/web/test_admin.py::test_the_list_of_connections_shows_what_is_queued_and_in_flight",
        ],
        "`POST /api/admin/users/{user_id}/disconnect`: close all connections of a user with 4004; 404 "
        "`not_found` where there are none.": [
            "tests/web/test_admin.py::test_disconnect_closes_every_connection_of_the_user_and_of_nobody_else",
            "tests/web/test_admin.py::test_disconnect_ends_one_who_reads_nothing_too",
        ],
        "The user may connect again.": [
            "tests/web/test_admin.py::test_who_was_disconnected_may_connect_again",
        ],
        "`POST /api/admin/notice`: a `notice` to every connection, of 1 to 1,000 characters; line ends "
        "(LF) and tabs are the only control characters that it may hold.": [
            "tests/web/test_admin.py::test_a_notice_reaches_every_connection",
            "tests/web/test_admin.py::test_a_notice_may_have_1000_characters",
            "tests/web/test_admin.py::test_a_notice_that_is_none_reaches_nobody",
        ],
        "The answer counts the connections.": [
            "tests/web/test_admin.py::test_a_notice_reaches_every_connection",
        ],
        "`GET /api/admin/limits`: the settings of the groups `limits` and `timeouts` as numbers, of "
        "bytes and of seconds.": [
            "tests/web/test_admin.py::test_the_limits_are_shown_as_plain_numbers_and_no_secret_with_them",
        ],
    },
    "Socket.IO": {
        "Clients of Socket.IO 5 (Engine.IO 4) speak the same events": [
            "tests/wire/test_socketio.py::test_an_event_means_the_same_in_both_dialects",
        ],
        "in the namespace `/`.": [
            "tests/wire/test_session.py::test_another_namespace_is_refused_and_the_session_goes_on",
        ],
        "The data of an event is its one argument; every event of Messages has the same name and the same "
        "data there.": [
            "tests/wire/test_socketio.py::test_an_event_is_a_list_of_its_name_and_its_data",
            "tests/wire/test_socketio.py::test_an_event_that_cannot_be_handled_is_named",
            "tests/wire/test_socketio.py::test_an_ack_has_the_data_of_the_plain_dialect",
            "tests/wire/test_socketio.py::test_a_message_is_an_event_with_its_data",
        ],
        "Who connects is said in the query, in the `auth` of the CONNECT packet, or in both: the parameters "
        "are those of Connecting.": [
            "tests/wire/test_identity.py::test_a_socket_io_client_says_who_it_is_in_query_or_auth_and_auth_wins",
            "tests/wire/test_identity.py::test_auth_is_held_to_the_rules_of_the_query",
        ],
        "What `auth` says wins, but two different users are refused.": [
            "tests/wire/test_identity.py::test_a_socket_io_client_says_who_it_is_in_query_or_auth_and_auth_wins",
            "tests/wire/test_identity.py::test_two_users_in_query_and_auth_are_refused",
        ],
        "Its values are strings; null counts as none.": [
            "tests/wire/test_identity.py::test_what_auth_says_is_strings",
            "tests/wire/test_identity.py::test_a_socket_io_client_says_who_it_is_in_query_or_auth_and_auth_wins",
        ],
        "A token is in `auth`, in the query or in the `Authorization` header.": [
            "tests/wire/test_identity.py::test_a_token_is_in_auth_or_in_the_query_or_in_the_header",
        ],
        'Without `user_id` or `backend_url` a client gets the event `error` with `{"message": "user_id and '
        'backend_url are required"}`, and DISCONNECT.': [
            "tests/wire/test_session.py::test_who_does_not_say_who_it_is_is_told_by_an_event_and_disconnected",
            "tests/wire/test_identity.py::test_without_user_or_url_in_query_or_auth_both_are_asked_for",
        ],
        "For other reasons it gets CONNECT_ERROR: `message` says why, `data.code` is the code of Refusals.": [
            "tests/wire/test_session.py::test_who_may_not_come_in_gets_a_connect_error_with_the_code",
        ],
        "An emit with a callback takes the place of `id`: the reply is sent as an event, and to the callback "
        "as well, with the same data. So it is with `event_ack`, `pong`, `refreshed` and `error`.": [
            "tests/wire/test_socketio.py::test_a_reply_comes_as_an_event_and_to_the_callback",
            "tests/wire/test_socketio.py::test_without_a_callback_nothing_is_called_back",
        ],
        "An ack id has at most 16 digits.": [
            "tests/wire/test_socketio.py::test_an_event_is_a_list_of_its_name_and_its_data",
            "tests/wire/test_socketio.py::test_an_event_that_cannot_be_handled_is_named",
        ],
        "A wrong number of arguments, a reserved name or an unknown type of packet is answered with "
        "`error`,": [
            "tests/wire/test_socketio.py::test_an_event_that_cannot_be_handled_is_named",
            "tests/wire/test_session.py::test_an_event_that_cannot_be_handled_leaves_the_session_open",
        ],
        "as are binary attachments, which are not taken: up to ten of them are swallowed.": [
            "tests/wire/test_session.py::test_announced_attachments_are_refused_and_swallowed",
            "tests/wire/test_session.py::test_a_packet_that_a_client_may_never_send_ends_the_session",
        ],
        "An ack that the service did not ask for is ignored.": [
            "tests/wire/test_session.py::test_an_ack_that_nobody_asked_for_is_no_more_than_an_error",
        ],
        'CONNECT to another namespace is answered with CONNECT_ERROR, "Invalid namespace".': [
            "tests/wire/test_session.py::test_another_namespace_is_refused_and_the_session_goes_on",
        ],
        "Other packets that break the protocol end the session with 1002: an empty one, one of an unknown "
        "kind, an event before CONNECT, a second CONNECT, more attachments than ten.": [
            "tests/wire/test_session.py::test_a_packet_that_a_client_may_never_send_ends_the_session",
            "tests/wire/test_session.py::test_a_message_before_the_client_is_let_in_ends_the_session",
            "tests/wire/test_session.py::test_a_second_connect_ends_the_session",
        ],
        "A binary message that was not announced ends it with 1003.": [
            "tests/wire/test_session.py::test_a_binary_message_that_nobody_announced_ends_the_session_with_1003",
            "tests/wire/test_session.py::test_one_binary_message_too_many_ends_the_session",
        ],
        "A request that Engine.IO does not allow gets the error of that protocol:": [
            "tests/wire/test_engineio.py::test_another_request_is_refused_with_the_error_of_the_protocol",
            "tests/wire/test_engineio.py::test_an_error_has_the_body_that_clients_read",
        ],
        "JSONP and Engine.IO 3 are not spoken.": [
            "tests/wire/test_engineio.py::test_another_request_is_refused_with_the_error_of_the_protocol",
        ],
        "An answer to a poll has at most 16 packets.": [
            "tests/wire/test_engineio.py::test_a_poll_brings_no_more_than_a_python_client_takes",
            "tests/wire/test_engineio.py::test_polls_bring_every_queued_packet_once_and_in_order",
        ],
        "A payload from a client may have any number, unless almost all of them are tiny: 256, and one more "
        "for each 32 bytes.": [
            "tests/wire/test_engineio.py::test_a_payload_of_almost_nothing_but_separators_is_refused",
            "tests/wire/test_engineio.py::test_a_burst_of_the_smallest_events_is_one_payload",
        ],
        "An upgrade is `2probe` on the WebSocket, then `5`.": [
            "tests/wire/test_upgrade.py::test_an_upgrade_is_a_probe_and_then_an_upgrade_packet",
            "tests/wire/test_upgrade.py::test_anything_but_a_probe_is_refused_on_the_new_websocket",
            "tests/wire/test_upgrade.py::test_anything_but_an_upgrade_is_refused_after_the_probe",
        ],
        "While it is under way no poll hangs, a second WebSocket is refused, and nothing is lost or "
        "overtaken.": [
            "tests/wire/test_upgrade.py::test_a_second_websocket_is_refused_while_one_is_there_and_after_it",
            "tests/wire/test_upgrade.py::test_nothing_is_lost_or_overtaken_by_an_upgrade_at_any_interleaving",
        ],
        "If it breaks off, polling goes on and it may be tried again.": [
            "tests/wire/test_upgrade.py::test_an_upgrade_that_broke_off_may_be_tried_again",
            "tests/wire/test_upgrade.py::test_nothing_is_lost_or_overtaken_by_an_upgrade_at_any_interleaving",
        ],
        "Before 1002, 1003, 1007, 1008, 4001, 4002 and 4004 a client gets DISCONNECT, after which it does "
        "not come back by itself. After any other end it does.": [
            "tests/wire/test_session.py::test_a_client_is_disconnected_where_it_is_not_to_come_back_by_itself",
        ],
    },
    "Refusals": {
        "These answers go to HTTP requests and to WebSocket upgrades.": [
            "tests/edge/test_door.py::test_a_malformed_head_is_refused_as_json",
            "tests/edge/test_door.py::test_a_refusal_of_an_upgrade_closes_the_connection",
        ],
    },
}

# What the sections above say besides: headings of a table, examples, reasons, advice to clients.
EXPLANATIONS = [
    "What a backend and the service say to each other: plain WebSocket for events, HTTP for questions.",
    "and says in the URL who it is:",
    "`event` is the message's name, `data` what belongs to it.",
    "`collab_event` sends an event to other users:",
    "Four types are in use.",
    "`position_shared`: a position is shared with users. The example above is one.",
    "`comment_added`: somebody commented on a shared position.",
    "`position_updated`: tags, notes or status of a position changed.",
    "`share_revoked`: a position is no longer shared.",
    "It is for clients that cannot send WebSocket pings, such as scripts in a browser.",
    "`collab_event` is an event for this user.",
    "`user_online` and `user_offline`: see Presence.",
    "A client should ignore events that it does not know.",
    "at `/socket.io/`,",
    "One whose connection breaks at that moment may not have.",
    "(ask `GET /api/users/online`),",
    "WebSocket libraries answer by themselves.",
    "A proxy in between must leave a silent connection open for longer than `timeouts.ping_interval`.",
    "`code` is for programs, `message` and `error` are for people and may change;",
    "These are the codes of the service:",
    "Without a close frame (many libraries call it 1006) the network or a process broke: "
    "reconnect, with a growing delay.",
]

# Advice to clients, and the defaults (tests/test_docs.py compares them).
SECTIONS_WITHOUT_SENTENCES = {"Reconnecting", "Limits"}

TABLES = {
    "PARAMETERS": PARAMETERS,
    "CLIENT_MESSAGES": CLIENT_MESSAGES,
    "EVENT_MEMBERS": EVENT_MEMBERS,
    "SERVICE_MESSAGES": SERVICE_MESSAGES,
    "PAYLOADS": PAYLOADS,
    "ERROR_CODES": ERROR_CODES,
    "CLOSE_CODES": CLOSE_CODES,
    "REFUSALS": REFUSALS,
    "LIMITS": LIMITS,
    "CLAIMS": CLAIMS,
    **{f"ENDPOINTS: {endpoint}": answers for endpoint, answers in ENDPOINTS.items()},
    **{f"SENTENCES: {title}": sentences for title, sentences in SENTENCES.items()},
}


@cache
def names_in(path):
    """The names of the tests that a file defines."""
    tree = ast.parse((ROOT / path).read_text())
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {function.name for function in functions if function.name.startswith("test_")}


def nodes_of_the_source():
    for path in PACKAGE.rglob("*.py"):
        yield from ast.walk(ast.parse(path.read_text()))


def refusals_in_the_source():
    """Status and code of every call that begins with both, as `Refused` and its subclasses take them."""
    found = set()
    for node in nodes_of_the_source():
        match node:
            case ast.Call(args=[ast.Constant(int(status)), ast.Constant(str(code)), *_]) if status >= 400:
                found.add((status, code))
    # Quart refuses a method by itself; the app answers its own faults.
    found |= {(error.status, error.code) for error in ERRORS_OF_EVENTS}
    return found | {(405, "method_not_allowed"), (500, "internal")}


def close_codes_that_are_sent():
    """Every close code that the source names outside of the list of them."""
    sent = set()
    for node in nodes_of_the_source():
        match node:
            case ast.Attribute(ast.Name("CloseCode"), name):
                sent.add(CloseCode[name])
    return sent


ENGINE_ENDPOINTS = {("/socket.io/", "GET"), ("/socket.io/", "POST")}


def first_cells(title, head):
    """The names in the first column of the table whose first row begins with `head`."""
    _, _, table = section(title).partition(f"\n| {head} |")
    assert table, head
    return [cell.strip("` ") for cell in re.findall(r"^\|([^|]*)\|", table.partition("\n\n")[0], re.M)[1:]]


def prose(text):
    """The sentences of a section, without tables, examples, headings, links and emphasis."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^([|#]|- \[).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return " ".join(text.replace("**", "").split())


def text_of(title):
    return prose(section(title) if title else PROTOCOL.partition("\n## ")[0])


@pytest.mark.parametrize("table", TABLES)
def test_every_row_names_tests_that_exist(table):
    for rule, tests in TABLES[table].items():
        assert tests, rule
        assert len(set(tests)) == len(tests), rule
        for test in tests:
            path, _, name = test.partition("::")
            assert (ROOT / path).is_file(), test
            assert name in names_in(path), test


def test_every_parameter_has_a_row():
    assert list(PARAMETERS) == first_cells("Connecting", "parameter")


def test_every_message_of_a_client_and_each_of_its_members_has_a_row():
    requests = {
        messages.RouteRequest: "collab_event",
        messages.PingRequest: "ping",
        messages.RefreshRequest: "refresh",
    }
    assert {requests[kind] for kind in messages.ClientMessage.__args__} == set(CLIENT_MESSAGES)
    assert list(EVENT_MEMBERS) == first_cells("Messages", "member of `data`")
    assert set(EVENT_MEMBERS) == set(messages.CollabEvent.__struct_fields__)


def test_every_message_of_the_service_has_a_row():
    # A `collab_event` is written from the client's message, and has no class of its own.
    assert set(SERVICE_MESSAGES) == {kind.event for kind in messages.ServerMessage.__args__} | {
        "collab_event"
    }


def test_every_claim_has_a_row():
    assert list(CLAIMS) == first_cells("Tokens", "claim")


def test_every_type_with_a_schema_has_a_row():
    built_in = {file.stem for file in (PACKAGE / "policy" / "event_types").iterdir()}
    assert set(PAYLOADS) == built_in
    assert list(PAYLOADS) == [row[0].strip("`") for row in rows("Validation")]


def test_every_error_code_has_a_row():
    assert set(ERROR_CODES) == {error.code for error in subclasses(errors.MessageError)}
    assert list(ERROR_CODES) == [row[0].strip("`") for row in rows("Errors")]


def test_every_close_code_has_a_row():
    assert list(CLOSE_CODES) == sorted(CloseCode)
    assert list(CLOSE_CODES) == [int(row[0]) for row in rows("Closing")]


def test_every_close_code_is_sent():
    # A close is answered with 1000 or its own code, whoever writes the answer.
    assert set(CloseCode) - close_codes_that_are_sent() <= {CloseCode.NORMAL}


def test_every_refusal_has_a_row():
    assert set(REFUSALS) == refusals_in_the_source()
    assert list(REFUSALS) == [(int(row[0]), row[1].strip("`")) for row in rows("Refusals")]


@pytest.mark.trio
async def test_every_endpoint_has_a_row(monkeypatch):
    made = []

    def noted(*args, **others):
        made.append(create_app(*args, **others))
        return made[0]

    monkeypatch.setattr(server, "create_app", noted)
    settings = Settings(admin=AdminSettings(token="x" * 32))
    async with open_service(settings, in_memory=True):
        routes = list(made[0].url_map.iter_rules())
    served = {
        method + " " + re.sub(r"<(?:[a-z]+:)?([a-z_]+)>", r"{\1}", route.rule)
        for route in routes
        for method in route.methods - {"HEAD", "OPTIONS"}
        # The other name of Engine.IO's path, and methods that get its own error.
        if route.rule not in ENGINE_PATHS or (route.rule, method) in ENGINE_ENDPOINTS
    }
    assert set(ENDPOINTS) == served
    # What the page shows of the API is served, and the other way round; the others are not of the API.
    shown = set(re.findall(r"^`((?:GET|POST) [^`]+)`", section("HTTP API"), re.MULTILINE))
    assert shown == {e for e in served if not re.match(r"(GET|POST) /(ws.*|socket\.io/)?$", e)}


def test_every_error_of_an_endpoint_is_a_refusal():
    for answers in ENDPOINTS.values():
        for answer in answers:
            status, _, code = answer.partition(" ")
            assert status == "200" or (int(status), code) in REFUSALS, answer


def test_every_limit_has_a_row():
    assert list(LIMITS) == [row[0].strip("`") for row in rows("Limits")]
    assert set(LIMITS) <= {option.path for option in options_of(Settings)}


def test_every_section_of_the_page_is_in_the_index():
    titles = set(re.findall(r"^## (.*)$", PROTOCOL, re.MULTILINE))
    assert titles == {title for title in SENTENCES if title} | SECTIONS_WITHOUT_SENTENCES


@pytest.mark.parametrize("title", SENTENCES)
def test_every_sentence_of_the_page_is_a_rule_with_tests_or_an_explanation(title):
    rest = text_of(title)
    for rule in sorted(SENTENCES[title], key=len, reverse=True):
        assert rule in rest, "the page says this no more, or in other words"
        rest = rest.replace(rule, "\n")
    for explanation in sorted(EXPLANATIONS, key=len, reverse=True):
        rest = rest.replace(explanation, "\n")
    assert rest.split() == [], "neither a rule with tests in SENTENCES, nor in EXPLANATIONS"


def test_every_explanation_is_on_the_page():
    page = " ".join(text_of(title) for title in SENTENCES)
    assert [explanation for explanation in EXPLANATIONS if explanation not in page] == []
