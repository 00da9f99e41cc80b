/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How ingress tells egress about a packet that goes by the kernel path: a note in a per-CPU slot,
 * and the slot's number in skb->tc_index, which nothing on the way touches.
 */
#ifndef NB_NOTE_H
#define NB_NOTE_H

#include <stdbool.h>
#include "lib/maps.h"
#include "lib/packet.h"

#define NB_MARK_MASK 0xffc0
#define NB_MARK_NOTE 0xe9c0
/* Sent by the fast path out of an uplink: to be counted there, not learned from. */
#define NB_MARK_FAST 0xe980

/* One packet in this many of an unknown flow is looked at. A power of two. */
#define NB_SAMPLING 16

static __always_inline __u32 flow_hash(const struct nb_flow_key *key)
{
	const __u32 *words = (const __u32 *)key;
	__u32 hash = 0x9e3779b9;

#pragma unroll
	for (__u32 i = 0; i < sizeof(*key) / 4; i++) {
		hash = (hash ^ words[i]) * 0x85ebca6b;
		hash ^= hash >> 15;
	}
	return hash;
}

/*
 * Whether an unknown flow is worth learning: at its second sampled packet. Short connections and
 * floods of one-packet flows cost a multiplication, and never touch conntrack or the cache.
 */
static __always_inline bool flow_is_worth_learning(__u32 hash)
{
	__u32 index = (hash >> 8) & (NB_SIGHTINGS - 1);
	__u32 *sighting = bpf_map_lookup_elem(&sightings, &index);

	if (!sighting)
		return false;
	if (*sighting == hash)
		return true;
	*sighting = hash;
	return false;
}

/*
 * Multiples of the golden ratio spread evenly, whatever the flows' packets alternate with: the
 * device's count of packets is as good as a random number, and costs less.
 */
static __always_inline bool sampled(const struct nb_device_counters *counters)
{
	return (__u32)counters->from_packets * 0x9e3779b9 < (__u32)-1 / NB_SAMPLING;
}

static __always_inline void leave_note(struct __sk_buff *skb, const struct nb_packet *packet,
				       __u32 hash, __u32 generation, bool settle_only)
{
	__u32 slot = hash & (NB_NOTES - 1);
	struct nb_note *note = bpf_map_lookup_elem(&notes, &slot);

	if (!note)
		return;
	note->key = packet->key;
	for (int i = 0; i < 6; i++)
		note->macs[i] = packet->macs[i];
	note->network_length = packet->network_length;
	note->generation = generation;
	note->ttl = packet->ttl;
	note->traffic_class = packet->traffic_class;
	note->settle_only = settle_only;
	skb->tc_index = NB_MARK_NOTE | slot;
}

#endif
