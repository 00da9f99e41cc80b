/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Most packets of short connections belong to no cached flow. Counts of the cached flows by a few
 * bits of their tuples tell so without a lookup in the cache. Userspace counts down what it
 * deletes.
 */
#ifndef NB_PRESENCE_H
#define NB_PRESENCE_H

#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "lib/maps.h"

/* Consecutive ports fall into one cache line. */
static __always_inline __u32 presence_slot(const struct nb_tuple *tuple)
{
	__u32 addresses = (tuple->source.words[3] ^ tuple->destination.words[3]) * 0x9e3779b9;

	return ((addresses >> 16) + bpf_ntohs(tuple->source_port) +
		bpf_ntohs(tuple->destination_port)) &
	       (NB_PRESENCE_SLOTS - 1);
}

/* Whether the cache may have a flow of this tuple. */
static __always_inline bool may_be_cached(const struct nb_tuple *tuple)
{
	__u32 first = 0;
	struct nb_presence *counts = bpf_map_lookup_elem(&presence, &first);

	return !counts || counts->flows[presence_slot(tuple)];
}

static __always_inline void count_presence(const struct nb_tuple *tuple, __u32 difference)
{
	__u32 first = 0;
	struct nb_presence *counts = bpf_map_lookup_elem(&presence, &first);

	if (counts)
		__sync_fetch_and_add(&counts->flows[presence_slot(tuple)], difference);
}

/* Puts a flow into the cache; an error if it is there or the cache is full. */
static __always_inline long insert_flow(const struct nb_flow_key *key, const struct nb_flow *flow)
{
	long failed;

	/* Counted first: a packet that comes meanwhile must not be told that there is none. */
	count_presence(&key->tuple, 1);
	failed = bpf_map_update_elem(&flows, key, flow, BPF_NOEXIST);
	if (failed)
		count_presence(&key->tuple, -1);
	return failed;
}

static __always_inline void delete_flow(const struct nb_flow_key *key)
{
	if (!bpf_map_delete_elem(&flows, key))
		count_presence(&key->tuple, -1);
}

#endif
