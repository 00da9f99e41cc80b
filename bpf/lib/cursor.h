/* SPDX-License-Identifier: GPL-2.0-only */
/* The bounds-checking cursor: the only way the programs read a packet. */
#ifndef NB_CURSOR_H
#define NB_CURSOR_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* The most that is ever looked at: IPv4 and TCP; IPv6 and a neighbour advertisement's target. */
#define NB_HEADER_BYTES (14 + 20 + 20)
#define NB_HEADER6_BYTES (14 + 40 + 24)

struct cursor {
	void *position;
	void *end;
};

/*
 * Begins at the Ethernet header. Whoever sends through a packet socket decides how much of the
 * frame is linear, so the headers are pulled in first; but nothing more, which would copy payload.
 */
static __always_inline bool cursor_open(struct __sk_buff *skb, struct cursor *cursor)
{
	bool ipv6 = skb->protocol == bpf_htons(ETH_P_IPV6);
	__u32 most = ipv6 ? NB_HEADER6_BYTES : NB_HEADER_BYTES;
	__u32 wanted = skb->len < most ? skb->len : most;
	__u64 linear = (__u64)skb->data_end - (__u64)skb->data;

	if (linear < wanted && bpf_skb_pull_data(skb, wanted))
		return false;
	cursor->position = (void *)(long)skb->data;
	cursor->end = (void *)(long)skb->data_end;
	return true;
}

/* The next `size` bytes, or NULL if the packet ends before. */
static __always_inline void *cursor_take(struct cursor *cursor, __u32 size)
{
	void *start = cursor->position;

	if (start + size > cursor->end)
		return 0;
	cursor->position = start + size;
	return start;
}

#endif
