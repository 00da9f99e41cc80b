/* SPDX-License-Identifier: GPL-2.0-only */
/* What the fast path must know of a packet, and which packets it leaves to the kernel path. */
#ifndef NB_PACKET_H
#define NB_PACKET_H

#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include "abi.h"
#include "lib/address.h"
#include "lib/cursor.h"

#define NB_FRAGMENT_MASK bpf_htons(0x3fff)
/* Byte 13 of the TCP header. */
#define NB_TCP_FIN 0x01
#define NB_TCP_SYN 0x02
#define NB_TCP_RST 0x04
#define NB_TCP_ACK 0x10
#define NB_TCP_URG 0x20

struct nb_packet {
	struct nb_flow_key key;
	__u16 macs[6];
	/* Size by the IP header. */
	__u32 network_length;
	/* Size of the largest packet that it becomes on the wire. */
	__u32 segment_length;
	__u8 ttl;
	__u8 traffic_class;
	__u8 tcp_flags;
	/* Of TCP, in the host's byte order; the end is the number after the last, FIN counted. */
	__u32 tcp_sequence;
	__u32 tcp_ack;
	__u32 tcp_end;
	__u16 tcp_window;
};

static __always_inline int parse_ipv4(struct cursor *cursor, struct nb_packet *packet)
{
	struct iphdr *ip = cursor_take(cursor, sizeof(*ip));

	if (!ip)
		return NB_PASS_TRUNCATED;
	if (ip->version != 4 || ip->ihl != 5)
		return NB_PASS_IP_OPTIONS;
	if (ip->frag_off & NB_FRAGMENT_MASK)
		return NB_PASS_FRAGMENT;
	packet->key.family = 4;
	packet->key.protocol = ip->protocol;
	address_from_v4(&packet->key.tuple.source, ip->saddr);
	address_from_v4(&packet->key.tuple.destination, ip->daddr);
	packet->network_length = bpf_ntohs(ip->tot_len);
	packet->segment_length = sizeof(*ip);
	packet->ttl = ip->ttl;
	packet->traffic_class = ip->tos;
	return 0;
}

static __always_inline int parse_ipv6(struct cursor *cursor, struct nb_packet *packet)
{
	struct ipv6hdr *ip = cursor_take(cursor, sizeof(*ip));

	if (!ip)
		return NB_PASS_TRUNCATED;
	if (ip->version != 6)
		return NB_PASS_IP_OPTIONS;
	/* A length of 0 announces a jumbogram or a packet of "big TCP". */
	if (!ip->payload_len)
		return NB_PASS_TRUNCATED;
	packet->key.family = 6;
	packet->key.protocol = ip->nexthdr;
	address_from_v6(&packet->key.tuple.source, ip->saddr.in6_u.u6_addr32);
	address_from_v6(&packet->key.tuple.destination, ip->daddr.in6_u.u6_addr32);
	packet->network_length = bpf_ntohs(ip->payload_len) + sizeof(*ip);
	packet->segment_length = sizeof(*ip);
	packet->ttl = ip->hop_limit;
	packet->traffic_class = (bpf_ntohl(*(__be32 *)ip) >> 20) & 0xff;
	return 0;
}

static __always_inline int parse_transport(struct cursor *cursor, struct nb_packet *packet)
{
	if (packet->key.protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = cursor_take(cursor, sizeof(*tcp));

		if (!tcp)
			return NB_PASS_TRUNCATED;
		packet->key.tuple.source_port = tcp->source;
		packet->key.tuple.destination_port = tcp->dest;
		packet->tcp_flags = ((__u8 *)tcp)[13];
		/* For conntrack invalid: a rule may say so. */
		if (tcp->doff * 4 < sizeof(*tcp))
			return NB_PASS_TRUNCATED;
		packet->segment_length += tcp->doff * 4;
		packet->tcp_sequence = bpf_ntohl(tcp->seq);
		packet->tcp_ack = bpf_ntohl(tcp->ack_seq);
		packet->tcp_window = bpf_ntohs(tcp->window);
		return 0;
	}
	if (packet->key.protocol == IPPROTO_UDP) {
		struct udphdr *udp = cursor_take(cursor, sizeof(*udp));

		if (!udp)
			return NB_PASS_TRUNCATED;
		packet->key.tuple.source_port = udp->source;
		packet->key.tuple.destination_port = udp->dest;
		/* As above. */
		if (bpf_ntohs(udp->len) < sizeof(*udp) ||
		    bpf_ntohs(udp->len) + packet->segment_length > packet->network_length)
			return NB_PASS_TRUNCATED;
		packet->segment_length += sizeof(*udp);
		return 0;
	}
	return NB_PASS_PROTOCOL;
}

/*
 * Reads the packet's headers. 0, or why it is none for the fast path (enum nb_event): anything but
 * a whole TCP or UDP packet directly behind a plain IP header directly behind Ethernet.
 */
static __always_inline int parse_packet(struct __sk_buff *skb, struct nb_packet *packet)
{
	struct cursor cursor;
	struct ethhdr *ethernet;
	int reason;

	if (skb->vlan_present)
		return NB_PASS_NOT_IP;
	if (!cursor_open(skb, &cursor))
		return NB_PASS_TRUNCATED;
	ethernet = cursor_take(&cursor, sizeof(*ethernet));
	if (!ethernet)
		return NB_PASS_TRUNCATED;
	__builtin_memset(packet, 0, sizeof(*packet));
	for (int i = 0; i < 6; i++)
		packet->macs[i] = ((__u16 *)ethernet)[i];
	packet->key.ifindex = skb->ifindex;

	if (ethernet->h_proto == bpf_htons(ETH_P_IP))
		reason = parse_ipv4(&cursor, packet);
	else if (ethernet->h_proto == bpf_htons(ETH_P_IPV6))
		reason = parse_ipv6(&cursor, packet);
	else
		return NB_PASS_NOT_IP;
	if (reason)
		return reason;
	reason = parse_transport(&cursor, packet);
	if (reason)
		return reason;
	if (packet->network_length < packet->segment_length ||
	    packet->network_length + sizeof(*ethernet) > skb->len)
		return NB_PASS_TRUNCATED;
	packet->tcp_end = packet->tcp_sequence + packet->network_length - packet->segment_length +
			  (packet->tcp_flags & NB_TCP_FIN);
	if (skb->gso_size)
		packet->segment_length += skb->gso_size;
	else
		packet->segment_length = packet->network_length;
	return 0;
}

#endif
