/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Asking conntrack. The structs name only what is read; their offsets are found at load time
 * (CO-RE) in the running kernel's include/net/netfilter/nf_conntrack.h.
 */
#ifndef NB_CONNTRACK_H
#define NB_CONNTRACK_H

#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nf_conntrack_tcp.h>
#include <bpf/bpf_core_read.h>
#include "lib/address.h"
#include "lib/packet.h"

#define NB_CURRENT_NETNS -1
/* Index of a helper in nf_ct_ext.offset: NF_CT_EXT_HELPER. */
#define NB_EXTENSION_HELPER 0

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

union nf_inet_addr___nb {
	__u32 all[4];
};

union nf_conntrack_man_proto {
	__be16 all;
};

struct nf_conntrack_man {
	union nf_inet_addr___nb u3;
	union nf_conntrack_man_proto u;
};

struct nf_conntrack_tuple {
	struct nf_conntrack_man src;
	struct {
		union nf_inet_addr___nb u3;
		union {
			__be16 all;
		} u;
	} dst;
};

struct nf_conntrack_tuple_hash {
	struct nf_conntrack_tuple tuple;
};

struct nf_ct_ext {
	__u8 offset[16];
};

enum nf_ct_ext_id___nb {
	NF_CT_EXT_TIMEOUT___nb,
};

struct ip_ct_tcp_state {
	__u32 td_end;
	__u32 td_maxend;
	__u32 td_maxwin;
	__u32 td_maxack;
	__u8 td_scale;
	__u8 flags;
};

struct ip_ct_tcp {
	struct ip_ct_tcp_state seen[2];
	__u8 state;
};

struct nf_tcp_net {
	unsigned int timeouts[TCP_CONNTRACK_TIMEOUT_MAX];
	__u8 tcp_be_liberal;
	__u8 tcp_max_retrans;
	__u8 tcp_ignore_invalid_rst;
};

struct nf_ip_net {
	struct nf_tcp_net tcp;
};

struct netns_ct {
	struct nf_ip_net nf_ct_proto;
};

struct net {
	struct netns_ct ct;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct nf_ct_udp {
	unsigned long stream_ts;
};

union nf_conntrack_proto {
	struct ip_ct_tcp tcp;
	struct nf_ct_udp udp;
};

struct nf_conn {
	struct nf_conntrack_tuple_hash tuplehash[2];
	unsigned long status;
	possible_net_t ct_net;
	struct nf_ct_ext *ext;
	union nf_conntrack_proto proto;
};

#pragma clang attribute pop

/* The first form of it, of Linux 5.18, which later kernels still take. */
struct bpf_ct_opts___nb {
	__s32 netns_id;
	__s32 error;
	__u8 l4proto;
	/* Out: the direction of the tuple that was found. */
	__u8 dir;
	__u8 reserved[2];
};

extern struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *skb, struct bpf_sock_tuple *tuple,
					 __u32 tuple__sz, struct bpf_ct_opts___nb *opts,
					 __u32 opts__sz) __ksym;
extern int bpf_ct_change_timeout(struct nf_conn *conn, __u32 milliseconds) __ksym;
extern void bpf_ct_release(struct nf_conn *conn) __ksym;

/* What the fast path needs of the entry of a leaving packet. */
struct nb_connection {
	/* The packet's tuple before NAT. */
	struct nb_tuple original;
	__u64 status;
	/* Direction of the packet. */
	__u8 direction;
	__u8 tcp_state;
	/* conntrack accepts what lies outside of the windows it knows, in both directions. */
	bool liberal;
	bool helper;
	bool timeout_policy;
};

static __always_inline void fill_sock_tuple4(struct bpf_sock_tuple *to, const struct nb_tuple *from)
{
	to->ipv4.saddr = from->source.words[3];
	to->ipv4.daddr = from->destination.words[3];
	to->ipv4.sport = from->source_port;
	to->ipv4.dport = from->destination_port;
}

static __always_inline void fill_sock_tuple6(struct bpf_sock_tuple *to, const struct nb_tuple *from)
{
	for (int i = 0; i < 4; i++) {
		to->ipv6.saddr[i] = from->source.words[i];
		to->ipv6.daddr[i] = from->destination.words[i];
	}
	to->ipv6.sport = from->source_port;
	to->ipv6.dport = from->destination_port;
}

static __always_inline struct nf_conn *
lookup_answer(struct __sk_buff *skb, const struct nb_packet *packet, struct bpf_ct_opts___nb *opts)
{
	struct bpf_sock_tuple answer = {};
	struct nb_tuple inverse;

	tuple_invert(&inverse, &packet->key.tuple);
	if (packet->key.family == 4) {
		fill_sock_tuple4(&answer, &inverse);
		return bpf_skb_ct_lookup(skb, &answer, sizeof(answer.ipv4), opts, sizeof(*opts));
	}
	fill_sock_tuple6(&answer, &inverse);
	return bpf_skb_ct_lookup(skb, &answer, sizeof(answer.ipv6), opts, sizeof(*opts));
}

/* Whether conntrack knows the connection of a packet that has not been through NAT yet. */
static __always_inline bool connection_is_known(struct __sk_buff *skb,
						const struct nb_packet *packet)
{
	struct bpf_ct_opts___nb opts = {
	    .netns_id = NB_CURRENT_NETNS,
	    .l4proto = packet->key.protocol,
	};
	struct bpf_sock_tuple tuple = {};
	struct nf_conn *entry;

	if (packet->key.family == 4) {
		fill_sock_tuple4(&tuple, &packet->key.tuple);
		entry = bpf_skb_ct_lookup(skb, &tuple, sizeof(tuple.ipv4), &opts, sizeof(opts));
	} else {
		fill_sock_tuple6(&tuple, &packet->key.tuple);
		entry = bpf_skb_ct_lookup(skb, &tuple, sizeof(tuple.ipv6), &opts, sizeof(opts));
	}
	if (!entry)
		return false;
	bpf_ct_release(entry);
	return true;
}

static __always_inline void read_tuple(struct nb_tuple *to, struct nf_conntrack_tuple *from,
				       __u8 family)
{
	bpf_core_read(&to->source, sizeof(to->source), &from->src.u3);
	bpf_core_read(&to->destination, sizeof(to->destination), &from->dst.u3);
	bpf_core_read(&to->source_port, sizeof(to->source_port), &from->src.u.all);
	bpf_core_read(&to->destination_port, sizeof(to->destination_port), &from->dst.u.all);
	if (family == 4) {
		address_from_v4(&to->source, to->source.words[0]);
		address_from_v4(&to->destination, to->destination.words[0]);
	}
}

static __always_inline bool has_extension(struct nf_conn *entry, __u32 id)
{
	struct nf_ct_ext *extensions = BPF_CORE_READ(entry, ext);
	__u8 offset = 0;

	if (!extensions)
		return false;
	bpf_core_read(&offset, sizeof(offset), &extensions->offset[id]);
	return offset;
}

/* By a rule (ct timeout, CT --timeout): nf_ct_timeout_lookup(). */
static __always_inline bool has_timeout_policy(struct nf_conn *entry)
{
	if (!bpf_core_enum_value_exists(enum nf_ct_ext_id___nb, NF_CT_EXT_TIMEOUT___nb))
		return false;
	return has_extension(entry,
			     bpf_core_enum_value(enum nf_ct_ext_id___nb, NF_CT_EXT_TIMEOUT___nb));
}

/*
 * The entry of a packet that has been through NAT: found by the tuple of the packet that would
 * answer it. The entry's tuple of the other direction is then this packet before NAT.
 */
static __always_inline struct nf_conn *find_connection(struct __sk_buff *skb,
						       const struct nb_packet *packet,
						       struct nb_connection *connection)
{
	struct bpf_ct_opts___nb opts = {
	    .netns_id = NB_CURRENT_NETNS,
	    .l4proto = packet->key.protocol,
	};
	struct nf_conn *entry = lookup_answer(skb, packet, &opts);
	__u8 flags0, flags1;

	if (!entry)
		return 0;
	if (opts.dir)
		read_tuple(&connection->original, &entry->tuplehash[0].tuple, packet->key.family);
	else
		read_tuple(&connection->original, &entry->tuplehash[1].tuple, packet->key.family);
	connection->direction = !opts.dir;
	connection->status = BPF_CORE_READ(entry, status);
	connection->helper = has_extension(entry, NB_EXTENSION_HELPER);
	connection->timeout_policy = has_timeout_policy(entry);
	connection->tcp_state = 0;
	connection->liberal = true;
	if (packet->key.protocol == IPPROTO_TCP) {
		connection->tcp_state = BPF_CORE_READ(entry, proto.tcp.state);
		flags0 = BPF_CORE_READ(entry, proto.tcp.seen[0].flags);
		flags1 = BPF_CORE_READ(entry, proto.tcp.seen[1].flags);
		connection->liberal = flags0 & flags1 & IP_CT_TCP_FLAG_BE_LIBERAL;
	}
	return entry;
}

/* 0, or why the connection is none to cache now (enum nb_event). */
static __always_inline int check_connection(const struct nb_packet *packet,
					    const struct nb_connection *connection)
{
	/* Until somebody has answered, rules take each packet for a new connection's. */
	__u64 needed = IPS_CONFIRMED | IPS_SEEN_REPLY;

	if (packet->key.protocol == IPPROTO_TCP) {
		needed |= IPS_ASSURED;
		if (connection->tcp_state != TCP_CONNTRACK_ESTABLISHED)
			return NB_PASS_CONNTRACK_STATE;
		/* Its timeouts are not the ones that would be set here. */
		if (connection->timeout_policy)
			return NB_PASS_TIMEOUT_POLICY;
	}
	if ((connection->status & needed) != needed || connection->status & IPS_DYING)
		return NB_PASS_CONNTRACK_STATE;
	/* A helper reads and changes payload; its entries' sequence numbers are shifted. */
	if (connection->helper || connection->status & (IPS_HELPER | IPS_SEQ_ADJUST))
		return NB_PASS_CONNTRACK_HELPER;
	return 0;
}

#endif
