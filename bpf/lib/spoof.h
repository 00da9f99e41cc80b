/* SPDX-License-Identifier: GPL-2.0-only */
/* Whether a frame from an endpoint bears its own addresses (RFC 2827, at the first hop). */
#ifndef NB_SPOOF_H
#define NB_SPOOF_H

#include <linux/icmpv6.h>
#include "lib/address.h"
#include "lib/cursor.h"
#include "lib/extension.h"
#include "lib/linklocal.h"
#include "lib/packet.h"

#define NB_NOT_SPOOFED -1
/* ICMPv6 types and options of neighbour discovery, RFC 4861. */
#define NB_ROUTER_SOLICITATION 133
#define NB_ROUTER_ADVERTISEMENT 134
#define NB_NEIGHBOUR_SOLICITATION 135
#define NB_NEIGHBOUR_ADVERTISEMENT 136
#define NB_SOURCE_MAC 1
#define NB_TARGET_MAC 2
/* Between a router advertisement's ICMPv6 header and its options. */
#define NB_ROUTER_TIMES 8
/* Options in a row that are followed. */
#define NB_DISCOVERY_OPTIONS 16
#define NB_VLAN_ID 0x0fff

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

static __always_inline bool owns_address(__u32 ifindex, const struct nb_device *device,
					 const struct nb_address *address)
{
	return is_link_local(address) ? owns_link_local(ifindex, device, address)
				      : device_has_address(device, address);
}

/* The beginning of an option of neighbour discovery, RFC 4861 section 4.6. */
struct nb_discovery_option {
	__u8 type;
	/* In units of 8 bytes. */
	__u8 length;
	__u16 mac[3];
};

/* Whether the MAC addresses that the message tells its receivers are the sender's. */
static __always_inline int spoofed_options(struct __sk_buff *skb, __u32 offset, __u32 end,
					   const struct nb_device *device)
{
	struct nb_discovery_option option;

	for (__u32 i = 0; i < NB_DISCOVERY_OPTIONS; i++) {
		if (offset + sizeof(option) > end)
			return NB_NOT_SPOOFED;
		if (bpf_skb_load_bytes(skb, offset, &option, sizeof(option)) || !option.length)
			return NB_DROP_UNREADABLE;
		if ((option.type == NB_SOURCE_MAC || option.type == NB_TARGET_MAC) &&
		    !device_has_mac(device, option.mac))
			return NB_DROP_SPOOFED_NEIGHBOUR;
		offset += option.length * 8;
	}
	return NB_DROP_UNREADABLE;
}

/* `end` is where the packet ends. */
static __always_inline int spoofed_discovery(struct __sk_buff *skb, __u8 next, __u32 end,
					     const struct nb_address *source,
					     const struct nb_device *device)
{
	struct nb_payload payload;
	struct nb_address target;
	__u8 type;

	if (!find_payload(skb, next, &payload))
		return NB_DROP_UNREADABLE;
	/* Receivers heed it behind any extension header but a fragment's (RFC 6980). */
	if (payload.protocol != IPPROTO_ICMPV6 || payload.later)
		return NB_NOT_SPOOFED;
	if (bpf_skb_load_bytes(skb, payload.offset, &type, sizeof(type)))
		return NB_NOT_SPOOFED;
	payload.offset += sizeof(struct icmp6hdr);
	if (type == NB_ROUTER_SOLICITATION)
		return spoofed_options(skb, payload.offset, end, device);
	if (type == NB_ROUTER_ADVERTISEMENT)
		return spoofed_options(skb, payload.offset + NB_ROUTER_TIMES, end, device);
	if (type != NB_NEIGHBOUR_SOLICITATION && type != NB_NEIGHBOUR_ADVERTISEMENT)
		return NB_NOT_SPOOFED;
	if (bpf_skb_load_bytes(skb, payload.offset, &target, sizeof(target)))
		return NB_DROP_UNREADABLE;
	/* Who solicits without an address is about to take the target for its own (RFC 4862). */
	if ((type == NB_NEIGHBOUR_ADVERTISEMENT || address_is_zero(source)) &&
	    !owns_address(skb->ifindex, device, &target))
		return NB_DROP_SPOOFED_NEIGHBOUR;
	return spoofed_options(skb, payload.offset + sizeof(target), end, device);
}

static __always_inline int spoofed_ipv6(struct __sk_buff *skb, struct cursor *cursor,
					const struct nb_device *device)
{
	struct ipv6hdr *ip = cursor_take(cursor, sizeof(*ip));
	struct nb_address source;
	__u32 end;

	if (!ip)
		return NB_DROP_UNREADABLE;
	address_from_v6(&source, ip->saddr.in6_u.u6_addr32);
	end = sizeof(struct ethhdr) + sizeof(*ip) + bpf_ntohs(ip->payload_len);
	/* ip6_rcv_core() takes all there is for a jumbogram's. */
	if (!ip->payload_len)
		end = skb->len;
	/* :: is that of duplicate address detection. */
	if (!address_is_zero(&source) && !owns_address(skb->ifindex, device, &source))
		return NB_DROP_SPOOFED_IPV6;
	return spoofed_discovery(skb, ip->nexthdr, end, &source, device);
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
	/*
	 * Receivers take VLAN 0 for no VLAN, however many tags are stacked, while bridges and rules
	 * on the way see a frame that is none of IP. The first tag is in the metadata already.
	 */
	if (skb->vlan_present && !(skb->vlan_tci & NB_VLAN_ID))
		return NB_DROP_UNREADABLE;
	switch (ethernet->h_proto) {
	case bpf_htons(ETH_P_IP):
		return spoofed_ipv4(&cursor, device);
	case bpf_htons(ETH_P_IPV6):
		return spoofed_ipv6(skb, &cursor, device);
	case bpf_htons(ETH_P_ARP):
		return spoofed_arp(&cursor, device);
	case bpf_htons(ETH_P_8021Q):
	case bpf_htons(ETH_P_8021AD):
		return NB_DROP_UNREADABLE;
	default:
		return NB_NOT_SPOOFED;
	}
}

#endif
