/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Checksum offload as a sender may abuse it. A packet can ask that its checksum be summed up and
 * written by whatever device it leaves by: long after rules and source checks have read it. Who
 * sends through a packet socket (PACKET_VNET_HDR) or AF_XDP says himself where to, and may thereby
 * have addresses or ports changed. Only a transport's own checksum is believed.
 */
#ifndef NB_OFFLOAD_H
#define NB_OFFLOAD_H

#include <stddef.h>
#include <linux/icmpv6.h>
#include "lib/buffer.h"
#include "lib/cursor.h"
#include "lib/extension.h"
#include "lib/packet.h"

#define NB_NO_CHECKSUM -1
/* Behind ports, SPI or the like: what a tunnel carries. */
#define NB_LEAST_TUNNEL_HEADER 8
/* struct sctphdr (linux/sctp.h) and struct dccp_hdr (linux/dccp.h). */
#define NB_SCTP_CHECKSUM 8
#define NB_DCCP_CHECKSUM 6

/* Offset of a protocol's checksum in its header, or NB_NO_CHECKSUM. */
static __always_inline int own_checksum(__u8 protocol)
{
	switch (protocol) {
	case IPPROTO_TCP:
		return offsetof(struct tcphdr, check);
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
		return offsetof(struct udphdr, check);
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return offsetof(struct icmp6hdr, icmp6_cksum);
	case IPPROTO_SCTP:
		return NB_SCTP_CHECKSUM;
	case IPPROTO_DCCP:
		return NB_DCCP_CHECKSUM;
	default:
		return NB_NO_CHECKSUM;
	}
}

/* `transport` is counted from the network header on. */
static __always_inline bool is_transports_own(struct __sk_buff *skb, __u8 protocol, int transport)
{
	int start = checksum_start(skb);

	if (start == transport && (int)checksum_offset(skb) == own_checksum(protocol))
		return true;
	/*
	 * A tunnel inside the sandbox leaves the inner packet's checksum to be offloaded. Only the
	 * kernel's tunnels set this mark; what they carry is payload to everybody on the way.
	 */
	return start >= transport + NB_LEAST_TUNNEL_HEADER && is_encapsulated(skb);
}

static __always_inline bool offload_fits_ipv4(struct __sk_buff *skb, struct cursor *cursor)
{
	struct iphdr *ip = cursor_take(cursor, sizeof(*ip));

	/* Fragments are cut from packets that are summed up (ip_do_fragment()). */
	if (!ip || ip->frag_off & NB_FRAGMENT_MASK)
		return false;
	return is_transports_own(skb, ip->protocol, ip->ihl * 4);
}

static __always_inline bool offload_fits_ipv6(struct __sk_buff *skb, struct cursor *cursor)
{
	struct ipv6hdr *ip = cursor_take(cursor, sizeof(*ip));
	struct nb_payload payload;

	if (!ip || !find_payload(skb, ip->nexthdr, &payload) || payload.fragment)
		return false;
	return is_transports_own(skb, payload.protocol, payload.offset - sizeof(struct ethhdr));
}

/* Whether the frame stays what it is until it arrives, but for its transport's own checksum. */
static __always_inline bool offload_is_harmless(struct __sk_buff *skb)
{
	struct cursor cursor;
	struct ethhdr *ethernet;

	if (!checksum_is_partial(skb))
		return true;
	if (!cursor_open(skb, &cursor))
		return false;
	ethernet = cursor_take(&cursor, sizeof(*ethernet));
	if (!ethernet)
		return false;
	switch (ethernet->h_proto) {
	case bpf_htons(ETH_P_IP):
		return offload_fits_ipv4(skb, &cursor);
	case bpf_htons(ETH_P_IPV6):
		return offload_fits_ipv6(skb, &cursor);
	case bpf_htons(ETH_P_ARP):
		return false;
	default:
		/* Nobody reads it on the way, as long as it stays what its type says. */
		return checksum_start(skb) >= 0;
	}
}

#endif
