// SPDX-License-Identifier: GPL-2.0-only
/* What leaves for an endpoint or an uplink: counted, and learned from if ingress left a note. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "lib/checksum.h"
#include "lib/conntrack.h"
#include "lib/count.h"
#include "lib/device.h"
#include "lib/maps.h"
#include "lib/note.h"
#include "lib/packet.h"
#include "lib/presence.h"
#include "lib/route.h"

#define NB_BASE_LEASE 250000000U
#define NB_LONGEST_LEASE 1000000000U
/* A flow with fewer packets in its lease gets a longer one. */
#define NB_BUSY_FLOW_PACKETS 32

/* 0, or what the kernel path did to the packet that the fast path can't do (enum nb_event). */
static __always_inline int check_change(const struct nb_note *note, const struct nb_packet *packet,
					const struct nb_connection *connection)
{
	__u8 decrement = note->ttl - packet->ttl;

	if (note->traffic_class != packet->traffic_class ||
	    note->network_length != packet->network_length)
		return NB_PASS_PACKET_CHANGED;
	/* Bridged packets keep their TTL; only those that br_netfilter translated are cached. */
	if (decrement > 1 || (!decrement && !(connection->status & IPS_NAT_MASK)))
		return NB_PASS_PACKET_CHANGED;
	return 0;
}

static __always_inline void fill_path(struct nb_path *path, struct __sk_buff *skb,
				      const struct nb_note *note, const struct nb_packet *packet,
				      const struct nb_device *device)
{
	path->translated = packet->key.tuple;
	for (int i = 0; i < 6; i++) {
		path->arrival_macs[i] = note->macs[i];
		path->departure_macs[i] = packet->macs[i];
	}
	path->output_ifindex = skb->ifindex;
	path->output_slot = device->slot;
	path->output_endpoint = device->flags & NB_DEVICE_ENDPOINT;
	path->mtu = device->mtu;
	path->address_difference =
	    checksum_address_difference(&note->key.tuple, &packet->key.tuple);
	path->port_difference = checksum_port_difference(&note->key.tuple, &packet->key.tuple);
	path->mark = skb->mark;
	path->priority = skb->priority;
	path->ttl_decrement = note->ttl - packet->ttl;
	/* What is bridged takes no route. */
	if (path->ttl_decrement)
		path->mtu = route_mtu(skb, packet->key.family, device->mtu);
}

static __always_inline bool same_path(const struct nb_path *a, const struct nb_path *b)
{
	const __u32 *left = (const __u32 *)a, *right = (const __u32 *)b;
	__u32 difference = 0;

#pragma unroll
	for (__u32 i = 0; i < sizeof(*a) / 4; i++)
		difference |= left[i] ^ right[i];
	return !difference;
}

static __always_inline __u32 next_lease(const struct nb_flow *flow, __u32 generation)
{
	if (flow->generation != generation || flow->lease_packets >= NB_BUSY_FLOW_PACKETS)
		return NB_BASE_LEASE;
	return flow->lease >= NB_LONGEST_LEASE / 2 ? NB_LONGEST_LEASE : flow->lease * 2;
}

/* Starts the next lease of a flow whose path is what it was: readers on other CPUs go on. */
static __always_inline void renew(struct nb_flow *flow, __u32 generation, __u64 now)
{
	flow->lease = next_lease(flow, generation);
	flow->lease_packets = 0;
	flow->generation = generation;
	flow->lease_end = now + flow->lease;
	count_event(NB_RENEWED);
}

static __always_inline int store(struct __sk_buff *skb, const struct nb_note *note,
				 const struct nb_packet *packet, const struct nb_device *device)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	struct nb_flow *fresh, *known;
	__u32 first = 0;

	fresh = bpf_map_lookup_elem(&scratch, &first);
	if (!fresh)
		return NB_PASS_CACHE_FULL;
	fill_path(&fresh->path, skb, note, packet, device);
	if (fresh->path.mtu == NB_ROUTE_UNKNOWN)
		return NB_PASS_ROUTE;
	fresh->packets = 0;
	fresh->bytes = 0;
	known = bpf_map_lookup_elem(&flows, &note->key);
	if (known) {
		if (same_path(&known->path, &fresh->path)) {
			renew(known, note->generation, now);
			note_presence(&note->key.tuple, known->lease_end);
			return 0;
		}
		fresh->packets = known->packets;
		fresh->bytes = known->bytes;
	}
	fresh->lease = NB_BASE_LEASE;
	fresh->lease_end = now + NB_BASE_LEASE;
	fresh->lease_packets = 0;
	fresh->generation = note->generation;
	note_presence(&note->key.tuple, fresh->lease_end);
	if (bpf_map_update_elem(&flows, &note->key, fresh, BPF_ANY))
		return NB_PASS_CACHE_FULL;
	count_event(NB_LEARNED);
	return 0;
}

/* 0, or why nothing was learned (enum nb_event). */
static __always_inline int learn(struct __sk_buff *skb, __u32 slot, const struct nb_device *device)
{
	struct nb_note *note = bpf_map_lookup_elem(&notes, &slot);
	struct nb_connection connection;
	struct nb_packet packet;
	int reason;

	if (!note || !note->key.family)
		return NB_PASS_NOTE_LOST;
	if (!(device->flags & NB_DEVICE_FAST_PATH))
		return NB_PASS_OUTPUT_OFF;
	reason = parse_packet(skb, &packet);
	if (reason)
		return reason;
	if (note->key.family != packet.key.family || note->key.protocol != packet.key.protocol)
		return NB_PASS_NOTE_LOST;
	/* A bridge floods what it does not know: only the right port's sandbox is meant. */
	if (device->flags & NB_DEVICE_ENDPOINT &&
	    (packet.macs[0] != device->mac[0] || packet.macs[1] != device->mac[1] ||
	     packet.macs[2] != device->mac[2]))
		return NB_PASS_FLOODED;
	if (!find_connection(skb, &packet, &connection))
		return NB_PASS_NO_CONNTRACK;
	if (!tuple_equal(&connection.original, &note->key.tuple))
		return NB_PASS_OTHER_TUPLE;
	reason = check_connection(&packet, &connection);
	if (!reason)
		reason = check_change(note, &packet, &connection);
	if (!reason)
		reason = store(skb, note, &packet, device);
	note->key.family = 0;
	return reason;
}

SEC("tcx/egress")
int nb_egress(struct __sk_buff *skb)
{
	__u32 mark = skb->tc_index, ifindex = skb->ifindex, first = 0;
	struct nb_device_counters *counters;
	const struct nb_device *device;
	struct nb_config *config;
	__u32 slot;
	int reason;

	config = bpf_map_lookup_elem(&switches, &first);
	if (!config)
		return TC_ACT_UNSPEC;
	device = find_device(ifindex, *(volatile __u32 *)&config->generation);
	if (!device)
		return TC_ACT_UNSPEC;
	slot = device->slot;
	counters = bpf_map_lookup_elem(&device_counters, &slot);
	if (counters) {
		counters->to_packets += 1;
		counters->to_bytes += skb->len;
	}
	if (!mark)
		return TC_ACT_UNSPEC;
	if ((mark & NB_MARK_MASK) == NB_MARK_NOTE) {
		skb->tc_index = 0;
		reason = learn(skb, mark & ~NB_MARK_MASK & (NB_NOTES - 1), device);
		if (reason)
			count_event(reason);
	} else if (mark == NB_MARK_FAST) {
		skb->tc_index = 0;
	}
	return TC_ACT_UNSPEC;
}
