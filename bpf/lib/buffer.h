/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the kernel keeps of a packet beside its bytes and does not show to tc programs. Their
 * context is the packet's struct sk_buff; the verifier rewrites accesses to it, but a helper that
 * reads any kernel memory gets it as it is. Offsets are found at load time (CO-RE) in the running
 * kernel's include/linux/skbuff.h.
 */
#ifndef NB_BUFFER_H
#define NB_BUFFER_H

#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

/* A device is to sum up the packet and write the checksum into it. */
#define NB_CHECKSUM_PARTIAL 3

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct sk_buff {
	unsigned long _skb_refdst;
	__u8 ip_summed : 2;
	__u8 encapsulation : 1;
	/* Counted from the buffer's beginning, as csum_start is. */
	__u16 network_header;
	__u16 csum_start;
	__u16 csum_offset;
};

#pragma clang attribute pop

static __always_inline struct sk_buff *kernel_buffer(struct __sk_buff *skb)
{
	return (void *)skb;
}

static __always_inline bool checksum_is_partial(struct __sk_buff *skb)
{
	return BPF_CORE_READ_BITFIELD_PROBED(kernel_buffer(skb), ip_summed) == NB_CHECKSUM_PARTIAL;
}

static __always_inline bool is_encapsulated(struct __sk_buff *skb)
{
	return BPF_CORE_READ_BITFIELD_PROBED(kernel_buffer(skb), encapsulation);
}

/* Where summing begins, from the network header on: negative if before it. */
static __always_inline int checksum_start(struct __sk_buff *skb)
{
	return (int)BPF_CORE_READ(kernel_buffer(skb), csum_start) -
	       (int)BPF_CORE_READ(kernel_buffer(skb), network_header);
}

/* Where the sum is written, from the start on. */
static __always_inline __u32 checksum_offset(struct __sk_buff *skb)
{
	return BPF_CORE_READ(kernel_buffer(skb), csum_offset);
}

#endif
