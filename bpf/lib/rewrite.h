/* SPDX-License-Identifier: GPL-2.0-only */
/* Makes a packet what the kernel path would have made of it. */
#ifndef NB_REWRITE_H
#define NB_REWRITE_H

#include <stddef.h>
#include "lib/checksum.h"
#include "lib/packet.h"

/* The frame's headers up to the ports. The padding aligns what follows Ethernet. */
struct nb_headers4 {
	__u16 padding;
	__u16 macs[6];
	__u16 protocol;
	struct iphdr ip;
	__u16 ports[2];
};

struct nb_headers6 {
	__u16 padding;
	__u16 macs[6];
	__u16 protocol;
	struct ipv6hdr ip;
	__u16 ports[2];
};

#define NB_HEADERS4_BYTES (sizeof(struct nb_headers4) - 2)
#define NB_HEADERS6_BYTES (sizeof(struct nb_headers6) - 2)

enum nb_rewrite_result {
	NB_REWRITTEN,
	/* Nothing was changed: the packet may go by the kernel path. */
	NB_UNTOUCHED,
	/* It is half done and must be dropped. */
	NB_BROKEN,
};

/*
 * Cuts off what lies behind the IP packet, as the kernel path does (ip_rcv_core(), ip6_rcv_core()):
 * a network card's padding of short frames, or whatever a sender put there. It would leave by
 * devices whose MTU it exceeds.
 */
static __always_inline bool trim(struct __sk_buff *skb, const struct nb_packet *packet)
{
	__u32 length = sizeof(struct ethhdr) + packet->network_length;

	if (skb->len == length)
		return true;
	/* Cutting takes segmentation offload away (bpf_skb_change_tail()). */
	return !skb->gso_size && !bpf_skb_change_tail(skb, length, 0);
}

/*
 * The transport checksum. The helpers know what kind of checksum the packet carries: complete,
 * partial (to be finished by a device) or the sum a network card took.
 */
static __always_inline enum nb_rewrite_result
rewrite_checksum(struct __sk_buff *skb, const struct nb_packet *packet, const struct nb_path *path)
{
	bool tcp = packet->key.protocol == IPPROTO_TCP;
	bool ipv6 = packet->key.family == 6;
	__u32 offset = sizeof(struct ethhdr) +
		       (ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)) +
		       (tcp ? offsetof(struct tcphdr, check) : offsetof(struct udphdr, check));
	/* A UDP checksum of 0 means none, and must neither appear nor vanish. */
	__u64 flags = tcp ? 0 : BPF_F_MARK_MANGLED_0;
	__u64 address_flags = flags | BPF_F_PSEUDO_HDR;

	if (path->address_difference &&
	    bpf_l4_csum_replace(skb, offset, 0, path->address_difference, address_flags))
		return NB_UNTOUCHED;
	/*
	 * The helper takes the addresses' change out of a card's sum, as is right for IPv4, whose
	 * header checksum makes up for it. IPv6 has none: put it back. (Linux 6.16 has a flag for
	 * that; this way needs none.)
	 */
	if (path->address_difference && ipv6)
		bpf_csum_update(skb, path->address_difference);
	if (path->port_difference &&
	    bpf_l4_csum_replace(skb, offset, 0, path->port_difference, flags))
		return path->address_difference ? NB_BROKEN : NB_UNTOUCHED;
	return NB_REWRITTEN;
}

static __always_inline long rewrite_headers4(struct __sk_buff *skb, const struct nb_path *path)
{
	struct nb_headers4 headers;
	struct cursor cursor = {(void *)(long)skb->data, (void *)(long)skb->data_end};
	struct ethhdr *ethernet = cursor_take(&cursor, sizeof(*ethernet));
	struct iphdr *ip = cursor_take(&cursor, sizeof(*ip));
	__u16 ttl_word;

	if (!ethernet || !ip)
		return -1;
	headers.padding = 0;
	for (int i = 0; i < 6; i++)
		headers.macs[i] = path->departure_macs[i];
	headers.protocol = bpf_htons(ETH_P_IP);
	headers.ip = *ip;
	headers.ip.ttl -= path->ttl_decrement;
	ttl_word = path->ttl_decrement ? (__u16)bpf_htons(0x0100) : 0;
	/* Lower the sum by what TTL lost, raise it by the addresses' difference: RFC 1624. */
	headers.ip.check = ~checksum_fold16((__u64)(__u16)~headers.ip.check +
					    path->address_difference + (__u16)~ttl_word);
	headers.ip.saddr = path->translated.source.words[3];
	headers.ip.daddr = path->translated.destination.words[3];
	headers.ports[0] = path->translated.source_port;
	headers.ports[1] = path->translated.destination_port;
	return bpf_skb_store_bytes(skb, 0, &headers.macs, NB_HEADERS4_BYTES, 0);
}

static __always_inline long rewrite_headers6(struct __sk_buff *skb, const struct nb_path *path)
{
	struct nb_headers6 headers;
	struct cursor cursor = {(void *)(long)skb->data, (void *)(long)skb->data_end};
	struct ethhdr *ethernet = cursor_take(&cursor, sizeof(*ethernet));
	struct ipv6hdr *ip = cursor_take(&cursor, sizeof(*ip));
	long failed;

	if (!ethernet || !ip)
		return -1;
	headers.padding = 0;
	for (int i = 0; i < 6; i++)
		headers.macs[i] = path->departure_macs[i];
	headers.protocol = bpf_htons(ETH_P_IPV6);
	headers.ip = *ip;
	headers.ip.hop_limit -= path->ttl_decrement;
	for (int i = 0; i < 4; i++) {
		headers.ip.saddr.in6_u.u6_addr32[i] = path->translated.source.words[i];
		headers.ip.daddr.in6_u.u6_addr32[i] = path->translated.destination.words[i];
	}
	headers.ports[0] = path->translated.source_port;
	headers.ports[1] = path->translated.destination_port;
	failed = bpf_skb_store_bytes(skb, 0, &headers.macs, NB_HEADERS6_BYTES, 0);
	/* IPv6 has no header checksum to make up for it in a sum taken by a network card. */
	if (!failed && path->ttl_decrement)
		bpf_csum_update(skb, (__u16)~bpf_htons(0x0001));
	return failed;
}

static __always_inline enum nb_rewrite_result
rewrite_packet(struct __sk_buff *skb, const struct nb_packet *packet, const struct nb_path *path)
{
	enum nb_rewrite_result result;
	long failed;

	if (!trim(skb, packet))
		return NB_UNTOUCHED;
	result = rewrite_checksum(skb, packet, path);
	if (result != NB_REWRITTEN)
		return result;
	/* The checksum lies behind all of this, so what is in front of it is writable by now. */
	if (packet->key.family == 4)
		failed = rewrite_headers4(skb, path);
	else
		failed = rewrite_headers6(skb, path);
	if (!failed)
		return NB_REWRITTEN;
	return path->address_difference || path->port_difference ? NB_BROKEN : NB_UNTOUCHED;
}

#endif
