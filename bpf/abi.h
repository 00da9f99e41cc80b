/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Everything that crosses between the programs and userspace, defined once. The Rust types are
 * generated from these. Change a struct, an enum's order or a map's meaning, and NB_ABI goes up:
 * a daemon that finds pins of another version loads anew instead of adopting them.
 */
#ifndef NB_ABI_H
#define NB_ABI_H

#include <linux/types.h>

enum nb_abi { NB_ABI = 2 };

/* Own addresses of one endpoint that the spoof check knows. */
#define NB_DEVICE_ADDRESSES 8

/* Link-local addresses of an endpoint's bridge that it knows. */
#define NB_DEVICE_RESERVED 4
/* Link-local addresses an endpoint may take beside that of its MAC. */
#define NB_LINK_LOCAL_CLAIMS 16

/* An address of either family; IPv4 as v4-mapped (::ffff:a.b.c.d). Network byte order. */
struct nb_address {
	__u32 words[4];
};

/* Ports in network byte order. */
struct nb_tuple {
	struct nb_address source;
	struct nb_address destination;
	__u16 source_port;
	__u16 destination_port;
};

struct nb_config {
	__u32 abi;
	/* Raised to end every lease at once. */
	__u32 generation;
	/* Flows are learned and used. */
	__u32 enabled;
	/* The connect hooks serve local addresses. */
	__u32 connect_enabled;
	/* SO_NETNS_COOKIE of the namespace natbridge serves: the hooks act on its sockets only. */
	__u64 netns_cookie;
	/*
	 * Somebody living has judged the host's rules, and stands for it until then
	 * (CLOCK_MONOTONIC nanoseconds). See lib/verdict.h.
	 */
	__u64 verdict_until;
	/* Raised by whatever may have made the verdict untrue. */
	__u32 rules_seen;
	/* What rules_seen was when the judged rules were read. */
	__u32 rules_judged;
	/* Of the kernel's timer interrupt: conntrack counts its timeouts in them. */
	__u64 tick_nanoseconds;
};

enum nb_device_flag {
	/* The host end of an endpoint's veth pair; otherwise an uplink. */
	NB_DEVICE_ENDPOINT = 1,
	NB_DEVICE_FAST_PATH = 2,
	NB_DEVICE_SPOOF_CHECK = 4,
	/* For the loader: attached by clsact filters instead of tcx links. */
	NB_DEVICE_CLSACT = 8,
	/* For the loader: the clsact qdisc was not there before. */
	NB_DEVICE_CLSACT_OWNED = 16,
};

struct nb_device {
	/* Index into device_counters. */
	__u32 slot;
	/* enum nb_device_flag */
	__u32 flags;
	__u32 mtu;
	/* Used elements of addresses. */
	__u32 address_count;
	/* The sandbox end's MAC; zero for an uplink. */
	__u16 mac[3];
	__u16 padding;
	/* Endpoint only: ifindex of the bridge. */
	__u32 link;
	/* Used elements of reserved: link-local addresses that are the bridge's. */
	__u32 reserved_count;
	struct nb_address addresses[NB_DEVICE_ADDRESSES];
	struct nb_address reserved[NB_DEVICE_RESERVED];
};

/* A link-local address on a link; or, on link 0, how many the device in the last word took. */
struct nb_link_local_key {
	__u32 link;
	struct nb_address address;
};

struct nb_link_local {
	/* ifindex of the endpoint's host end. */
	__u32 owner;
	__u32 claims;
};

/* What a program found in `devices`, for as long as the generation is the same. */
struct nb_device_copy {
	__u32 ifindex;
	__u32 generation;
	struct nb_device device;
};

/* Why a packet was dropped. Append only. */
enum nb_drop {
	NB_DROP_SPOOFED_MAC,
	NB_DROP_SPOOFED_IPV4,
	NB_DROP_SPOOFED_IPV6,
	NB_DROP_SPOOFED_NEIGHBOUR,
	NB_DROP_UNREADABLE,
	NB_DROP_REWRITE_FAILED,
	/* Its checksum was to be written where its transport has none. */
	NB_DROP_FALSE_OFFLOAD,
	/* A FIN or RST that conntrack would call invalid had it seen the connection whole. */
	NB_DROP_TCP_INVALID,
	/* An answer whose connection conntrack has lost, to what it has not seen. */
	NB_DROP_LOST_CONNECTION,
	NB_DROP_COUNT,
};

/* Room for reasons to come without a change of layout. */
#define NB_DROP_SLOTS 16

struct nb_device_counters {
	__u64 from_packets;
	__u64 from_bytes;
	__u64 to_packets;
	__u64 to_bytes;
	__u64 fast_packets;
	__u64 kernel_packets;
	__u64 drops[NB_DROP_SLOTS];
};

struct nb_flow_key {
	/* The device the packets arrive on: a flow serves nobody elsewhere. */
	__u32 ifindex;
	struct nb_tuple tuple;
	/* IPPROTO_TCP or IPPROTO_UDP */
	__u8 protocol;
	/* 4 or 6: an IPv6 packet may carry v4-mapped addresses on the wire. */
	__u8 family;
	__u16 padding;
};

/* What the kernel path made of the flow's packets. */
struct nb_path {
	struct nb_tuple translated;
	/* Ethernet destination and source as the packets arrive, and as they leave. */
	__u16 arrival_macs[6];
	__u16 departure_macs[6];
	__u32 output_ifindex;
	/* Index of the output device into device_counters. */
	__u32 output_slot;
	/* Into a sandbox rather than out of an uplink. */
	__u32 output_endpoint;
	/* Largest network-layer packet that may leave. */
	__u32 mtu;
	/* Checksum differences of the addresses and of the ports. */
	__u32 address_difference;
	__u32 port_difference;
	__u32 mark;
	__u32 priority;
	/* 1, or 0 where br_netfilter translated a bridged packet. */
	__u32 ttl_decrement;
};

/* One direction of a TCP connection, as conntrack's struct ip_ct_tcp_state has it. */
struct nb_tcp_side {
	/* The number after the highest sent. */
	__u32 end;
	/* The highest acknowledgement sent, and the highest end of a window offered. */
	__u32 ack;
	__u32 edge;
	/* The largest window offered, by this side and by the other one when last heard of. */
	__u32 window;
	__u32 peer_window;
	/* The last packet, to tell one that is sent again. */
	__u32 last_sequence;
	__u32 last_ack;
	__u32 last_end;
	__u16 last_window;
	__u8 scale;
	/* How often the last packet came again. */
	__u8 repeats;
};

/*
 * One direction of a connection. It is kept as long as conntrack's entry, for what conntrack can't
 * know any more once packets have passed it by.
 */
struct nb_flow {
	/* CLOCK_MONOTONIC nanoseconds; 0 when there is no lease. */
	__u64 lease_end;
	/* Nanoseconds. */
	__u32 lease;
	__u32 generation;
	/* Packets since the lease began, for its next length. */
	__u32 lease_packets;
	struct nb_path path;
	/* Bytes, so that each is written without touching another. */
	/* The path is what the kernel path made of a packet. */
	__u8 learned;
	/* The numbers below are what conntrack alone would hold. */
	__u8 trusted;
	/* The numbers below are of this connection at all. */
	__u8 seeded;
	/* Packets have passed conntrack by. */
	__u8 used;
	/* The entry is, or is asked to be, one whose windows conntrack does not judge. */
	__u8 liberal;
	/* The direction of conntrack's reply tuple. */
	__u8 reply;
	/* A FIN has been seen. */
	__u8 closing;
	/* The last packet repeated data. */
	__u8 repeated;
	/* nf_conntrack_tcp_ignore_invalid_rst is set. */
	__u8 ignore_invalid_rst;
	/* Times that the packet of refused_sequence was refused. */
	__u8 refusals;
	/* Packets met by what would learn, before conntrack was asked not to judge windows. */
	__u16 met;
	__u32 refused_sequence;
	/* Nanoseconds: of the last packet, of the first of its repetitions, of the last request to
	 * userspace, of the first refusal. */
	__u64 seen_at;
	__u64 repeats_since;
	__u64 asked_at;
	__u64 refused_since;
	/* conntrack's entry. */
	__u64 entry;
	struct nb_tcp_side side;
	/* Fast packets and their bytes. Plain additions: a flow that moves between CPUs may lose
	 * some. */
	__u64 packets;
	__u64 bytes;
};

/* Slots of nb_presence. A power of two; small enough to stay in a CPU's own cache. */
#define NB_PRESENCE_SLOTS 16384

struct nb_presence {
	__u32 flows[NB_PRESENCE_SLOTS];
};

/* What egress and ingress ask of userspace, which alone can change conntrack's TCP state. */
enum nb_request_kind {
	/* Judge no windows of this entry: it is about to be learned. */
	NB_REQUEST_LIBERAL,
	/* A valid RST has ended the connection. */
	NB_REQUEST_CLOSE,
};

struct nb_request {
	/* Of either direction. */
	struct nb_tuple tuple;
	__u8 family;
	/* enum nb_request_kind */
	__u8 kind;
	__u16 padding;
};

/* What ingress saw of a packet that egress may learn from. */
struct nb_note {
	struct nb_flow_key key;
	__u16 macs[6];
	__u32 network_length;
	__u32 generation;
	__u8 ttl;
	__u8 traffic_class;
	/* Nothing is to be learned: only conntrack's timeout is to be set right. */
	__u8 settle_only;
	__u8 padding;
};

/*
 * What became of packets and flows. The first four are events of flows; the rest say why a packet
 * was not forwarded or not learned. Append only.
 */
enum nb_event {
	NB_LEARNED,
	NB_RENEWED,
	NB_EXPIRED,
	NB_INVALIDATED,
	NB_PASS_DISABLED,
	NB_PASS_NOT_IP,
	NB_PASS_TRUNCATED,
	NB_PASS_IP_OPTIONS,
	NB_PASS_FRAGMENT,
	NB_PASS_PROTOCOL,
	NB_PASS_TCP_FLAGS,
	NB_PASS_UNKNOWN_FLOW,
	NB_PASS_LEASE_OVER,
	NB_PASS_OTHER_MAC,
	NB_PASS_TTL,
	NB_PASS_TOO_BIG,
	NB_PASS_NOT_WRITABLE,
	NB_PASS_OUTPUT_OFF,
	NB_PASS_FLOODED,
	NB_PASS_NOTE_LOST,
	NB_PASS_PACKET_CHANGED,
	NB_PASS_NO_CONNTRACK,
	NB_PASS_CONNTRACK_STATE,
	NB_PASS_CONNTRACK_HELPER,
	NB_PASS_OTHER_TUPLE,
	NB_PASS_CACHE_FULL,
	NB_PASS_UNJUDGED,
	/* The route does more than forward. */
	NB_PASS_ROUTE,
	NB_PASS_OUT_OF_WINDOW,
	NB_PASS_NOT_LIBERAL,
	NB_PASS_ONE_DIRECTION,
	NB_PASS_TIMEOUT_POLICY,
	NB_EVENT_COUNT,
};

#define NB_EVENT_SLOTS 64

struct nb_port_key {
	/* ::ffff:0.0.0.0 or :: for every local address of the family. */
	struct nb_address address;
	__u16 port;
	__u8 protocol;
	__u8 padding;
};

struct nb_port {
	struct nb_address address;
	__u16 port;
	__u16 padding;
	/* Index into port_connects. */
	__u32 slot;
	/* Whose it is and whose address it leads to: beginnings of their ids. */
	__u64 port_id;
	__u64 endpoint_id;
};

/* What an address in local_addresses is. */
enum nb_address_kind {
	/* The host's own. */
	NB_ADDRESS_LOCAL = 1,
	/* An endpoint's, which published ports lead to. */
	NB_ADDRESS_TARGET = 2,
};

/* Address and port a socket asked for, and where the hook sent it; ids as in nb_port. */
struct nb_peer {
	struct nb_address asked;
	struct nb_address target;
	__u16 asked_port;
	__u16 target_port;
	__u32 padding;
	__u64 port_id;
	__u64 endpoint_id;
};

/* A socket that bears an nb_peer, as sockets.bpf.c lists it. Ports in network byte order. */
struct nb_socket {
	__u64 cookie;
	/* SO_NETNS_COOKIE of its namespace. */
	__u64 netns_cookie;
	/* Of its file; zero if no process has it any more. */
	__u64 inode;
	struct nb_address local;
	struct nb_address remote;
	__u16 local_port;
	__u16 remote_port;
	/* AF_INET or AF_INET6, IPPROTO_TCP or IPPROTO_UDP, enum of include/net/tcp_states.h */
	__u8 family;
	__u8 protocol;
	__u8 state;
	__u8 padding;
	__u32 bound_device;
	__u32 more_padding;
	struct nb_peer peer;
};

/* One question of an unconnected socket; unused if asked_port is 0. */
struct nb_answer {
	struct nb_address asked;
	struct nb_address target;
	__u16 asked_port;
	__u16 target_port;
};

/* What the connect hooks did with a call. Append only. */
enum nb_connect_result {
	NB_CONNECT_SERVED,
	NB_CONNECT_DISABLED,
	NB_CONNECT_OTHER_NAMESPACE,
	NB_CONNECT_PROTOCOL,
	NB_CONNECT_NOT_LOCAL,
	NB_CONNECT_NO_PORT,
	NB_CONNECT_BOUND,
	NB_CONNECT_V6ONLY,
	NB_CONNECT_OTHER_FAMILY,
	NB_CONNECT_NO_MEMORY,
	NB_CONNECT_ANSWER_MAPPED,
	NB_CONNECT_PEER_MAPPED,
	NB_CONNECT_UNJUDGED,
	NB_CONNECT_AMBIGUOUS,
	NB_CONNECT_CONNECTED,
	NB_CONNECT_COUNT,
};

#define NB_CONNECT_SLOTS 32

#endif
