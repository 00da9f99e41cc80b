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
#include "lib/pair.h"
#include "lib/presence.h"
#include "lib/request.h"
#include "lib/route.h"
#include "lib/tcp-conntrack.h"

#define NB_BASE_LEASE 250000000U
/* How much longer than the original direction the reply direction waits for it to go first. */
#define NB_REPLY_GRACE 250000000U
#define NB_LONGEST_LEASE 1000000000U
/* A flow with fewer packets in its lease gets a longer one. */
#define NB_BUSY_FLOW_PACKETS 32
#define NB_PACKETS_OF_SHORT_FLOW 16

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

/* A packet that egress learns from, and what it belongs to. */
struct nb_lesson {
	struct __sk_buff *skb;
	const struct nb_note *note;
	const struct nb_packet *packet;
	const struct nb_device *device;
	struct nf_conn *entry;
	const struct nb_connection *connection;
	__u64 now;
};

/*
 * When both directions are leased, they end together: see end_both_leases() of ingress. So the
 * reply direction's lease is as long as what is left of the original's, and a grace.
 */
static __always_inline __u64 lease_end(const struct nb_lesson *lesson, const struct nb_flow *flow,
				       const struct nb_flow *partner)
{
	__u64 end = lesson->now + flow->lease;

	if (!flow->reply)
		return end;
	if (partner && partner->generation == lesson->note->generation &&
	    partner->lease_end > lesson->now)
		end = partner->lease_end;
	return end + NB_REPLY_GRACE;
}

/* Starts the next lease of a flow: readers on other CPUs go on. */
static __always_inline void renew(const struct nb_lesson *lesson, struct nb_flow *flow,
				  const struct nb_flow *partner)
{
	flow->lease = next_lease(flow, lesson->note->generation);
	flow->lease_packets = 0;
	flow->generation = lesson->note->generation;
	flow->lease_end = lease_end(lesson, flow, partner);
	count_event(NB_RENEWED);
}

/*
 * conntrack takes UDP for a stream, with a longer timeout, at its first packet two seconds after
 * the beginning (nf_conntrack_udp_packet()): it must see the first packet from then on.
 */
static __always_inline void end_before_stream(const struct nb_lesson *lesson, struct nb_flow *flow,
					      __u64 tick_nanoseconds)
{
	struct nf_conn *entry = lesson->entry;
	__u64 stream, ticks = bpf_jiffies64();

	if (lesson->connection->status & IPS_ASSURED)
		return;
	stream = BPF_CORE_READ(entry, proto.udp.stream_ts);
	if (stream <= ticks)
		return;
	stream = lesson->now + (stream - ticks) * tick_nanoseconds;
	if (flow->lease_end > stream)
		flow->lease_end = stream;
}

/* The other direction's flow, not learned yet: its packets are followed from now on. */
static __always_inline int store_partner(const struct nb_lesson *lesson, struct nb_flow *stub)
{
	struct nb_flow_key key;
	struct nb_flow *known;
	bool trusted = stub->trusted;

	reverse_key(&key, &lesson->note->key, &stub->path);
	stub->path.output_ifindex = lesson->note->key.ifindex;
	tuple_invert(&stub->path.translated, &lesson->note->key.tuple);
	stub->learned = 0;
	stub->reply = !lesson->connection->direction;
	if (stub->seeded)
		read_side(&stub->side, lesson->entry, stub->reply);
	if (!insert_flow(&key, stub))
		return 0;
	/* Left of another connection, or of another way of this one. */
	known = bpf_map_lookup_elem(&flows, &key);
	if (!known)
		return NB_PASS_CACHE_FULL;
	known->trusted = 0;
	known->entry = (__u64)lesson->entry;
	return trusted ? NB_PASS_OTHER_TUPLE : 0;
}

static __always_inline void seed_from_conntrack(const struct nb_lesson *lesson,
						struct nb_flow *flow)
{
	flow->trusted = !lesson->connection->liberal;
	flow->seeded = flow->trusted;
	flow->liberal = lesson->connection->liberal;
	/* The scale is never out of date, and an entry that is liberal has nothing else to tell. */
	read_side(&flow->side, lesson->entry, flow->reply);
}

/* Stores a flow for the first time; 0 or why not (enum nb_event). `fresh` has its path. */
static __always_inline int store_new(const struct nb_lesson *lesson, struct nb_flow *fresh)
{
	bool tcp = lesson->packet->key.protocol == IPPROTO_TCP;
	struct nb_flow *known;
	int reason = 0;

	fresh->learned = 1;
	fresh->reply = lesson->connection->direction;
	fresh->entry = (__u64)lesson->entry;
	fresh->seen_at = lesson->now;
	fresh->lease = NB_BASE_LEASE;
	if (tcp)
		seed_from_conntrack(lesson, fresh);
	if (insert_flow(&lesson->note->key, fresh))
		return NB_PASS_CACHE_FULL;
	count_event(NB_LEARNED);
	if (tcp)
		reason = store_partner(lesson, fresh);
	if (reason == NB_PASS_OTHER_TUPLE) {
		known = bpf_map_lookup_elem(&flows, &lesson->note->key);
		if (known)
			known->trusted = 0;
		reason = 0;
	}
	return reason;
}

/* Replaces the path of a flow. */
static __always_inline int store_path(const struct nb_lesson *lesson, const struct nb_flow *known,
				      const struct nb_path *path)
{
	__u32 second = 1;
	struct nb_flow *changed = bpf_map_lookup_elem(&scratch, &second);

	if (!changed)
		return NB_PASS_CACHE_FULL;
	__builtin_memcpy(changed, known, sizeof(*changed));
	changed->path = *path;
	changed->learned = 1;
	changed->lease_end = 0;
	changed->lease = NB_BASE_LEASE;
	changed->lease_packets = 0;
	if (bpf_map_update_elem(&flows, &lesson->note->key, changed, BPF_EXIST))
		return NB_PASS_CACHE_FULL;
	if (!known->learned)
		count_event(NB_LEARNED);
	return 0;
}

static __always_inline int store(const struct nb_lesson *lesson, struct nb_flow **known)
{
	__u32 first = 0;
	struct nb_flow *fresh = bpf_map_lookup_elem(&scratch, &first);
	int reason;

	if (!fresh)
		return NB_PASS_CACHE_FULL;
	__builtin_memset(fresh, 0, sizeof(*fresh));
	fill_path(&fresh->path, lesson->skb, lesson->note, lesson->packet, lesson->device);
	if (fresh->path.mtu == NB_ROUTE_UNKNOWN)
		return NB_PASS_ROUTE;
	if (*known && (*known)->learned && same_path(&(*known)->path, &fresh->path))
		return 0;
	if (*known)
		reason = store_path(lesson, *known, &fresh->path);
	else
		reason = store_new(lesson, fresh);
	if (!reason)
		*known = bpf_map_lookup_elem(&flows, &lesson->note->key);
	return reason;
}

static __always_inline void ask_for_liberal(const struct nb_lesson *lesson, struct nb_flow *flow)
{
	if (lesson->now - flow->asked_at < NB_REQUEST_INTERVAL)
		return;
	flow->asked_at = lesson->now;
	request(&lesson->note->key, NB_REQUEST_LIBERAL);
}

/*
 * conntrack must not judge windows it will not have seen, of this entry alone; until it does not,
 * it sees every packet, of both directions. Asking wakes userspace, which costs more than a short
 * connection could gain.
 */
static __always_inline void prepare_tcp(const struct nb_lesson *lesson, struct nb_flow *flow,
					struct nb_flow *partner)
{
	if (flow->met < NB_PACKETS_OF_SHORT_FLOW) {
		flow->met += 1;
		return;
	}
	flow->liberal = 1;
	partner->liberal = 1;
	if (!flow->used) {
		merge_side(&flow->side, lesson->entry, flow->reply);
		merge_side(&partner->side, lesson->entry, !flow->reply);
	}
	ask_for_liberal(lesson, flow);
}

/* 0 if a lease may begin, or why not (enum nb_event). */
static __always_inline int lease_tcp(const struct nb_lesson *lesson, struct nb_flow *flow,
				     struct nb_flow *partner)
{
	if (!partner)
		return NB_PASS_ONE_DIRECTION;
	/* Also where the host is: it may cease to be, with an entry that knows old windows. */
	if (!lesson->connection->liberal) {
		prepare_tcp(lesson, flow, partner);
		return NB_PASS_NOT_LIBERAL;
	}
	if (host_is_liberal(lesson->entry)) {
		/* Nothing is invalid here. */
		flow->trusted = 0;
		partner->trusted = 0;
	}
	if (!partner->learned)
		return NB_PASS_ONE_DIRECTION;
	flow->ignore_invalid_rst = host_ignores_invalid_rst(lesson->entry);
	flow->liberal = 1;
	partner->liberal = 1;
	flow->used = 1;
	partner->used = 1;
	return 0;
}

/* Follows what conntrack made of a connection that passes it by; false if it is another one. */
static __always_inline bool follow_tcp(const struct nb_lesson *lesson, struct nb_flow *flow,
				       struct nb_flow *partner, __u64 tick_nanoseconds)
{
	const struct nb_connection *connection = lesson->connection;

	if (flow->entry != (__u64)lesson->entry ||
	    connection->tcp_state == TCP_CONNTRACK_SYN_SENT ||
	    connection->tcp_state == TCP_CONNTRACK_SYN_RECV)
		return false;
	if (!partner)
		return true;
	flow->side.peer_window = partner->side.window;
	if (!(connection->status & IPS_ASSURED)) {
		/* Made anew in mid-connection: conntrack itself believes all of this entry. */
		flow->trusted = 0;
		partner->trusted = 0;
		return true;
	}
	if (!flow->used)
		return true;
	settle_timeout(lesson->entry, connection, flow, partner, tick_nanoseconds, lesson->now);
	if (ack_grows_old(lesson->entry, flow))
		ask_for_liberal(lesson, flow);
	return true;
}

/* 0, or why nothing was learned (enum nb_event). */
static __always_inline int learn_connection(const struct nb_lesson *lesson, __u64 tick_nanoseconds)
{
	const struct nb_note *note = lesson->note;
	struct nb_flow *known = bpf_map_lookup_elem(&flows, &note->key);
	struct nb_flow *partner = known ? find_partner(&note->key, known) : 0;
	bool tcp = lesson->packet->key.protocol == IPPROTO_TCP;
	int reason;

	if (!tuple_equal(&lesson->connection->original, &note->key.tuple))
		return NB_PASS_OTHER_TUPLE;
	if (tcp && known && !follow_tcp(lesson, known, partner, tick_nanoseconds)) {
		forget_pair(&note->key, known);
		known = 0;
	}
	if (note->settle_only)
		return 0;
	if (!(lesson->device->flags & NB_DEVICE_FAST_PATH))
		return NB_PASS_OUTPUT_OFF;
	reason = check_connection(lesson->packet, lesson->connection);
	if (!reason)
		reason = check_change(note, lesson->packet, lesson->connection);
	if (!reason)
		reason = store(lesson, &known);
	if (reason)
		return reason;
	if (!known)
		return NB_PASS_CACHE_FULL;
	/* The way may have changed, and with it the other direction's key. */
	partner = find_partner(&note->key, known);
	if (tcp)
		reason = lease_tcp(lesson, known, partner);
	if (reason)
		return reason;
	renew(lesson, known, partner);
	if (!tcp)
		end_before_stream(lesson, known, tick_nanoseconds);
	return 0;
}

static __always_inline int learn(struct __sk_buff *skb, __u32 slot, const struct nb_device *device,
				 __u64 tick_nanoseconds)
{
	struct nb_note *note = bpf_map_lookup_elem(&notes, &slot);
	struct nb_connection connection;
	struct nb_packet packet;
	struct nb_lesson lesson = {
	    .skb = skb,
	    .note = note,
	    .packet = &packet,
	    .device = device,
	    .connection = &connection,
	};
	int reason;

	if (!note || !note->key.family)
		return NB_PASS_NOTE_LOST;
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
	lesson.entry = find_connection(skb, &packet, &connection);
	if (!lesson.entry)
		return NB_PASS_NO_CONNTRACK;
	lesson.now = bpf_ktime_get_coarse_ns();
	reason = learn_connection(&lesson, tick_nanoseconds);
	bpf_ct_release(lesson.entry);
	if (reason != NB_PASS_OTHER_TUPLE)
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
		reason = learn(skb, mark & ~NB_MARK_MASK & (NB_NOTES - 1), device,
			       config->tick_nanoseconds);
		if (reason)
			count_event(reason);
	} else if (mark == NB_MARK_FAST) {
		skb->tc_index = 0;
	}
	return TC_ACT_UNSPEC;
}
