/* SPDX-License-Identifier: GPL-2.0-only */
/* Whether a frame from an endpoint bears its own addresses (RFC 2827, at the first hop). */
#ifndef NB_SPOOF_H
#define NB_SPOOF_H

#include <linux/icmpv6.h>
#include "lib/address.h"
#include "lib/cursor.h"
#include "lib/packet.h"

#define NB_NOT_SPOOFED -1
#define NB_NEIGHBOUR_ADVERTISEMENT 136

/* ARP over Ethernet for IPv4, RFC 826. */
struct nb_arp {
	__u16 hardware;
	__u16 protocol;
	__u8 lengths[2];
	__u16 operation;
	__u8 sender_mac[6];
	__u8 sender_address[4];
	__u8 target_mac[6];
	__u8 target_address[4];
};

static __always_inline bool device_has_address(const struct nb_device *device,
					       const struct nb_address *address)
{
	for (__u32 i = 0; i < NB_DEVICE_ADDRESSES; i++) {
		if (i >= device->address_count)
			return false;
		if (address_equal(&device->addresses[i], address))
			return true;
	}
	return false;
}

static __always_inline bool device_has_mac(const struct nb_device *device, const void *mac)
{
	const __u16 *words = mac;

	return words[0] == device->mac[0] && words[1] == device->mac[1] &&
	       words[2] == device->mac[2];
}

static __always_inline int spoofed_arp(struct cursor *cursor, const struct nb_device *device)
{
	struct nb_arp *arp = cursor_take(cursor, sizeof(*arp));
	struct nb_address sender;
	__u32 v4;

	if (!arp)
		return NB_DROP_UNREADABLE;
	if (!device_has_mac(device, arp->sender_mac))
		return NB_DROP_SPOOFED_NEIGHBOUR;
	__builtin_memcpy(&v4, arp->sender_address, sizeof(v4));
	/* A probe asks whether an address is free, RFC 5227. */
	if (!v4)
		return NB_NOT_SPOOFED;
	address_from_v4(&sender, v4);
	return device_has_address(device, &sender) ? NB_NOT_SPOOFED : NB_DROP_SPOOFED_NEIGHBOUR;
}

static __always_inline int spoofed_ipv4(struct cursor *cursor, const struct nb_device *device)
{
	struct iphdr *ip = cursor_take(cursor, sizeof(*ip));
	struct nb_address source;

	if (!ip)
		return NB_DROP_UNREADABLE;
	address_from_v4(&source, ip->saddr);
	return device_has_address(device, &source) ? NB_NOT_SPOOFED : NB_DROP_SPOOFED_IPV4;
}

static __always_inline bool is_link_local(const struct nb_address *address)
{
	return (address->words[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

static __always_inline int spoofed_ipv6(struct cursor *cursor, const struct nb_device *device)
{
	struct ipv6hdr *ip = cursor_take(cursor, sizeof(*ip));
	struct icmp6hdr *icmp;
	struct in6_addr *target;
	struct nb_address address;

	if (!ip)
		return NB_DROP_UNREADABLE;
	address_from_v6(&address, ip->saddr.in6_u.u6_addr32);
	/* Link-local addresses are the sandbox's own choice; :: is duplicate address detection. */
	if (!is_link_local(&address) && !address_is_zero(&address) &&
	    !device_has_address(device, &address))
		return NB_DROP_SPOOFED_IPV6;
	if (ip->nexthdr != IPPROTO_ICMPV6)
		return NB_NOT_SPOOFED;
	icmp = cursor_take(cursor, sizeof(*icmp));
	if (!icmp || icmp->icmp6_type != NB_NEIGHBOUR_ADVERTISEMENT)
		return NB_NOT_SPOOFED;
	target = cursor_take(cursor, sizeof(*target));
	if (!target)
		return NB_DROP_UNREADABLE;
	address_from_v6(&address, target->in6_u.u6_addr32);
	return is_link_local(&address) || device_has_address(device, &address)
		   ? NB_NOT_SPOOFED
		   : NB_DROP_SPOOFED_NEIGHBOUR;
}

/* NB_NOT_SPOOFED, or the reason to drop the frame (enum nb_drop). */
static __always_inline int check_source(struct __sk_buff *skb, const struct nb_device *device)
{
	struct cursor cursor;
	struct ethhdr *ethernet;

	if (!cursor_open(skb, &cursor))
		return NB_DROP_UNREADABLE;
	ethernet = cursor_take(&cursor, sizeof(*ethernet));
	if (!ethernet)
		return NB_DROP_UNREADABLE;
	if (!device_has_mac(device, ethernet->h_source))
		return NB_DROP_SPOOFED_MAC;
	switch (ethernet->h_proto) {
	case bpf_htons(ETH_P_IP):
		return spoofed_ipv4(&cursor, device);
	case bpf_htons(ETH_P_IPV6):
		return spoofed_ipv6(&cursor, device);
	case bpf_htons(ETH_P_ARP):
		return spoofed_arp(&cursor, device);
	default:
		return NB_NOT_SPOOFED;
	}
}

#endif
