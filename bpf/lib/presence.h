/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Most packets of short connections belong to no cached flow. An array of times tells so without
 * a lookup in the cache: it errs towards "may be cached" only.
 */
#ifndef NB_PRESENCE_H
#define NB_PRESENCE_H

#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "lib/maps.h"

/* Nanoseconds to units of an eighth of a second: 32 bits last for 18 years of uptime. */
#define NB_PRESENCE_SHIFT 27
/* Units that a flow is still looked for after its lease, to be renewed at once. */
#define NB_PRESENCE_GRACE 16

/* Consecutive ports fall into one cache line. */
static __always_inline __u32 presence_slot(const struct nb_tuple *tuple)
{
	__u32 addresses = (tuple->source.words[3] ^ tuple->destination.words[3]) * 0x9e3779b9;

	return ((addresses >> 16) + bpf_ntohs(tuple->source_port) +
		bpf_ntohs(tuple->destination_port)) &
	       (NB_PRESENCE_SLOTS - 1);
}

/* Whether the cache may have a flow of this tuple that is not long over. */
static __always_inline bool may_be_cached(const struct nb_tuple *tuple, __u64 now)
{
	__u32 first = 0;
	struct nb_presence *times = bpf_map_lookup_elem(&presence, &first);

	return !times || times->until[presence_slot(tuple)] >= (__u32)(now >> NB_PRESENCE_SHIFT);
}

/* To be called before a flow gets into the cache, and when its lease is renewed. */
static __always_inline void note_presence(const struct nb_tuple *tuple, __u64 lease_end)
{
	__u32 first = 0;
	__u32 end = (__u32)(lease_end >> NB_PRESENCE_SHIFT) + NB_PRESENCE_GRACE;
	struct nb_presence *times = bpf_map_lookup_elem(&presence, &first);

	/* Leases differ by less than the grace: whoever comes last may shorten another's. */
	if (times)
		times->until[presence_slot(tuple)] = end;
}

#endif
