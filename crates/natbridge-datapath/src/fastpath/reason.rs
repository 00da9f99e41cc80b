//! Words for the numbers of `bpf/abi.h`: they are label values of metrics, so they never change.

use super::abi::{nb_connect_result, nb_drop, nb_event};

/// Reasons a packet was dropped, with their slots.
pub const DROPS: &[(nb_drop, &str)] = &[
    (nb_drop::NB_DROP_SPOOFED_MAC, "spoofed_mac"),
    (nb_drop::NB_DROP_SPOOFED_IPV4, "spoofed_source_ipv4"),
    (nb_drop::NB_DROP_SPOOFED_IPV6, "spoofed_source_ipv6"),
    (nb_drop::NB_DROP_SPOOFED_NEIGHBOUR, "spoofed_neighbour"),
    (nb_drop::NB_DROP_UNREADABLE, "unreadable"),
    (nb_drop::NB_DROP_REWRITE_FAILED, "rewrite_failed"),
    (nb_drop::NB_DROP_FALSE_OFFLOAD, "false_checksum_offload"),
    (nb_drop::NB_DROP_TCP_INVALID, "tcp_invalid"),
    (nb_drop::NB_DROP_LOST_CONNECTION, "lost_connection"),
];

/// Reasons a packet was left to the kernel path, or a flow not learned.
pub const PASSES: &[(nb_event, &str)] = &[
    (nb_event::NB_PASS_DISABLED, "disabled"),
    (nb_event::NB_PASS_NOT_IP, "not_ip"),
    (nb_event::NB_PASS_TRUNCATED, "truncated"),
    (nb_event::NB_PASS_IP_OPTIONS, "ip_options"),
    (nb_event::NB_PASS_FRAGMENT, "fragment"),
    (nb_event::NB_PASS_PROTOCOL, "protocol"),
    (nb_event::NB_PASS_TCP_FLAGS, "tcp_flags"),
    (nb_event::NB_PASS_UNKNOWN_FLOW, "unknown_flow"),
    (nb_event::NB_PASS_LEASE_OVER, "lease_over"),
    (nb_event::NB_PASS_OTHER_MAC, "other_mac"),
    (nb_event::NB_PASS_TTL, "ttl"),
    (nb_event::NB_PASS_TOO_BIG, "too_big"),
    (nb_event::NB_PASS_NOT_WRITABLE, "not_writable"),
    (nb_event::NB_PASS_OUTPUT_OFF, "output_off"),
    (nb_event::NB_PASS_FLOODED, "flooded"),
    (nb_event::NB_PASS_NOTE_LOST, "note_lost"),
    (nb_event::NB_PASS_PACKET_CHANGED, "packet_changed"),
    (nb_event::NB_PASS_NO_CONNTRACK, "no_conntrack"),
    (nb_event::NB_PASS_CONNTRACK_STATE, "conntrack_state"),
    (nb_event::NB_PASS_CONNTRACK_HELPER, "conntrack_helper"),
    (nb_event::NB_PASS_OTHER_TUPLE, "other_tuple"),
    (nb_event::NB_PASS_CACHE_FULL, "cache_full"),
    (nb_event::NB_PASS_UNJUDGED, "rules_unjudged"),
    (nb_event::NB_PASS_ROUTE, "route"),
    (nb_event::NB_PASS_OUT_OF_WINDOW, "out_of_window"),
    (nb_event::NB_PASS_NOT_LIBERAL, "conntrack_windows"),
    (nb_event::NB_PASS_ONE_DIRECTION, "one_direction"),
    (nb_event::NB_PASS_TIMEOUT_POLICY, "timeout_policy"),
];

/// What the connect hooks did with a call.
pub const CONNECTS: &[(nb_connect_result, &str)] = &[
    (nb_connect_result::NB_CONNECT_SERVED, "served"),
    (nb_connect_result::NB_CONNECT_DISABLED, "disabled"),
    (nb_connect_result::NB_CONNECT_OTHER_NAMESPACE, "other_namespace"),
    (nb_connect_result::NB_CONNECT_PROTOCOL, "protocol"),
    (nb_connect_result::NB_CONNECT_NOT_LOCAL, "not_local"),
    (nb_connect_result::NB_CONNECT_NO_PORT, "no_port"),
    (nb_connect_result::NB_CONNECT_BOUND, "bound"),
    (nb_connect_result::NB_CONNECT_V6ONLY, "v6only"),
    (nb_connect_result::NB_CONNECT_OTHER_FAMILY, "other_family"),
    (nb_connect_result::NB_CONNECT_NO_MEMORY, "no_memory"),
    (nb_connect_result::NB_CONNECT_ANSWER_MAPPED, "answer_mapped"),
    (nb_connect_result::NB_CONNECT_PEER_MAPPED, "peer_mapped"),
    (nb_connect_result::NB_CONNECT_UNJUDGED, "rules_unjudged"),
    (nb_connect_result::NB_CONNECT_AMBIGUOUS, "ambiguous"),
    (nb_connect_result::NB_CONNECT_CONNECTED, "connected"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_of_the_programs_has_a_word() {
        let drops: Vec<u32> = DROPS.iter().map(|(reason, _)| reason.0).collect();
        assert_eq!(drops, (0..nb_drop::NB_DROP_COUNT.0).collect::<Vec<_>>());
        let passes: Vec<u32> = PASSES.iter().map(|(reason, _)| reason.0).collect();
        let first = nb_event::NB_PASS_DISABLED.0;
        assert_eq!(passes, (first..nb_event::NB_EVENT_COUNT.0).collect::<Vec<_>>());
        let connects: Vec<u32> = CONNECTS.iter().map(|(result, _)| result.0).collect();
        assert_eq!(connects, (0..nb_connect_result::NB_CONNECT_COUNT.0).collect::<Vec<_>>());
    }
}
