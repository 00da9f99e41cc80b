// SPDX-License-Identifier: GPL-2.0-only
/* What arrives from an endpoint or an uplink: counted, checked, and sent on if its way is known. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "lib/conntrack.h"
#include "lib/count.h"
#include "lib/device.h"
#include "lib/maps.h"
#include "lib/note.h"
#include "lib/offload.h"
#include "lib/packet.h"
#include "lib/pair.h"
#include "lib/presence.h"
#include "lib/request.h"
#include "lib/rewrite.h"
#include "lib/spoof.h"
#include "lib/tcp.h"
#include "lib/verdict.h"

/* skb->pkt_type, linux/if_packet.h */
#define NB_PACKET_HOST 0

/* No action of a program's: the packet is to be carried on. */
#define NB_KNOWN_GOES_ON 1000

/* A flow that brings fewer packets per longest lease than this is not renewed every time. */
#define NB_SLOW_FLOW_PACKETS 2
#define NB_LONGEST_LEASE 1000000000U
/* What a lease of that length has carried is repeated, and then by the kernel path, within this
 * time (RFC 6298: the pause doubles, and begins at three seconds at most). */
#define NB_REPETITION 4000000000ULL

/* Whoever sends the same FIN or RST so often, and for so long, is the real end: let it through. */
#define NB_REFUSALS_MAX 4
#define NB_REFUSALS_TIME 3000000000ULL

static __always_inline bool same_macs(const __u16 *a, const __u16 *b)
{
	return !((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) | (a[4] ^ b[4]) |
		 (a[5] ^ b[5]));
}

/* 0, or why the flow does not cover this packet (enum nb_event). */
static __always_inline int check_flow(const struct nb_packet *packet, const struct nb_flow *flow)
{
	if (!same_macs(packet->macs, flow->path.arrival_macs))
		return NB_PASS_OTHER_MAC;
	/* The kernel path answers with "time exceeded". */
	if (packet->ttl <= 1)
		return NB_PASS_TTL;
	if (packet->segment_length > flow->path.mtu)
		return NB_PASS_TOO_BIG;
	return 0;
}

static __always_inline int send_on(struct __sk_buff *skb, const struct nb_path *path)
{
	if (path->output_endpoint) {
		/* On a bridge port, what is meant for the bridge is "for another host". */
		if (skb->pkt_type != NB_PACKET_HOST)
			bpf_skb_change_type(skb, NB_PACKET_HOST);
		return bpf_redirect_peer(path->output_ifindex, 0);
	}
	if (skb->mark != path->mark)
		skb->mark = path->mark;
	if (skb->priority != path->priority)
		skb->priority = path->priority;
	skb->tc_index = NB_MARK_FAST;
	return bpf_redirect(path->output_ifindex, 0);
}

static __always_inline void count_sent(const struct nb_path *path, __u32 bytes)
{
	__u32 slot = path->output_slot;
	struct nb_device_counters *counters;

	/* An uplink's egress hook sees the packet and counts it; a sandbox's is skipped. */
	if (!path->output_endpoint)
		return;
	counters = bpf_map_lookup_elem(&device_counters, &slot);
	if (!counters)
		return;
	counters->to_packets += 1;
	counters->to_bytes += bytes;
}

static __always_inline int pass(struct nb_device_counters *counters, int event)
{
	counters->kernel_packets += 1;
	count_event(event);
	return TC_ACT_UNSPEC;
}

static __always_inline int drop(struct nb_device_counters *counters, __u32 reason)
{
	if (reason < NB_DROP_SLOTS)
		counters->drops[reason] += 1;
	return TC_ACT_SHOT;
}

/* A known flow's packet goes by the kernel path: conntrack's timeout must come out right. */
static __always_inline int pass_known(struct __sk_buff *skb, const struct nb_packet *packet,
				      struct nb_flow *flow, struct nb_device_counters *counters,
				      __u32 generation, int reason)
{
	if (flow->used)
		leave_note(skb, packet, flow_hash(&packet->key), generation, true);
	/* conntrack sees this direction again: a lost entry is made anew. */
	if (!flow->reply)
		flow->lease_packets = 0;
	return pass(counters, reason);
}

/* The packet goes by the kernel path, and egress is to learn where that leads. */
static __always_inline int pass_unknown(struct __sk_buff *skb, const struct nb_packet *packet,
					struct nb_device_counters *counters, __u32 generation)
{
	__u32 hash;

	if (sampled(counters)) {
		hash = flow_hash(&packet->key);
		if (flow_is_worth_learning(hash))
			leave_note(skb, packet, hash, generation, false);
	}
	return pass(counters, NB_PASS_UNKNOWN_FLOW);
}

/*
 * The reply direction's lease ends with the first packet of the original direction that takes the
 * kernel path, and not before: should conntrack's entry be gone, the side that can make it anew as
 * it was makes it.
 */
static __always_inline void end_both_leases(const struct nb_packet *packet, struct nb_flow *flow)
{
	struct nb_flow *partner;

	if (!flow->lease_end)
		return;
	flow->lease_end = 0;
	if (flow->reply)
		return;
	partner = find_partner(&packet->key, flow);
	if (partner)
		partner->lease_end = 0;
}

/*
 * Somebody has deleted conntrack's entry, and the packet that would have made it anew went by the
 * fast path: without it this answer would leave untranslated, and end the connection. Dropped, what
 * it answers is repeated, by the kernel path.
 */
static __always_inline bool has_lost_connection(struct __sk_buff *skb,
						const struct nb_packet *packet,
						const struct nb_flow *flow, __u64 now)
{
	struct nb_flow *partner;

	if (!flow->reply || !flow->used)
		return false;
	partner = find_partner(&packet->key, flow);
	return partner && partner->lease_end && partner->lease_packets &&
	       now < partner->seen_at + NB_REPETITION && !connection_is_known(skb, packet);
}

/* The lease is over: this packet renews it, unless the flow is too slow to gain from it. */
static __always_inline int pass_expired(struct __sk_buff *skb, const struct nb_packet *packet,
					struct nb_flow *flow, struct nb_device_counters *counters,
					__u32 generation)
{
	bool slow = flow->lease >= NB_LONGEST_LEASE && flow->lease_packets < NB_SLOW_FLOW_PACKETS;

	if (flow->lease_end)
		count_event(flow->generation == generation ? NB_EXPIRED : NB_INVALIDATED);
	end_both_leases(packet, flow);
	if (!slow || sampled(counters))
		leave_note(skb, packet, flow_hash(&packet->key), generation, false);
	else
		return pass_known(skb, packet, flow, counters, generation, NB_PASS_LEASE_OVER);
	return pass(counters, NB_PASS_LEASE_OVER);
}

static __always_inline int forward(struct __sk_buff *skb, const struct nb_packet *packet,
				   struct nb_flow *flow, struct nb_device_counters *counters,
				   __u32 generation)
{
	int reason = check_flow(packet, flow);
	__u32 bytes;

	if (reason)
		return pass_known(skb, packet, flow, counters, generation, reason);
	switch (rewrite_packet(skb, packet, &flow->path)) {
	case NB_REWRITTEN:
		break;
	case NB_UNTOUCHED:
		return pass_known(skb, packet, flow, counters, generation, NB_PASS_NOT_WRITABLE);
	default:
		return drop(counters, NB_DROP_REWRITE_FAILED);
	}
	/* Without what was cut off: so it leaves. */
	bytes = skb->len;
	flow->lease_packets += 1;
	flow->packets += 1;
	flow->bytes += bytes;
	counters->fast_packets += 1;
	count_sent(&flow->path, bytes);
	return send_on(skb, &flow->path);
}

/* A real end repeats what is not answered, for long; then the numbers here must be wrong. */
static __always_inline bool refuse(struct nb_flow *flow, const struct nb_packet *packet, __u64 now)
{
	if (!flow->refusals || flow->refused_sequence != packet->tcp_sequence) {
		flow->refused_sequence = packet->tcp_sequence;
		flow->refused_since = now;
		flow->refusals = 0;
	}
	if (flow->refusals < NB_REFUSALS_MAX) {
		flow->refusals += 1;
		return true;
	}
	return now - flow->refused_since < NB_REFUSALS_TIME;
}

/* A RST that conntrack, whose numbers are old, may not know for one that ends the connection. */
static __always_inline void reset(const struct nb_packet *packet, struct nb_flow *flow,
				  struct nb_flow *partner)
{
	if (flow->trusted && !reset_is_exact(flow, &partner->side, packet)) {
		/* Who was meant may object, and conntrack must see that. */
		flow->lease_end = 0;
		partner->lease_end = 0;
		return;
	}
	request(&packet->key, NB_REQUEST_CLOSE);
	forget_pair(&packet->key, flow);
}

/* FIN and RST of a connection whose windows conntrack does not judge: enum nb_judgement. */
static __always_inline enum nb_judgement close_flow(const struct nb_packet *packet,
						    struct nb_flow *flow, __u64 now)
{
	struct nb_flow *partner = find_partner(&packet->key, flow);
	enum nb_judgement judgement;

	/* An entry that never left conntrack's sight is conntrack's to judge. */
	if (!partner || !flow->liberal) {
		forget_pair(&packet->key, flow);
		count_event(NB_INVALIDATED);
		return NB_TCP_ACCEPT;
	}
	if (flow->trusted && partner->trusted) {
		judgement = judge_close(flow, &partner->side, packet);
		if (judgement != NB_TCP_ACCEPT && refuse(flow, packet, now))
			return judgement;
	}
	count_event(NB_INVALIDATED);
	if (packet->tcp_flags & NB_TCP_RST) {
		reset(packet, flow, partner);
		return NB_TCP_ACCEPT;
	}
	track(flow, packet, now);
	flow->lease_end = 0;
	partner->lease_end = 0;
	flow->closing = 1;
	if (partner->closing)
		forget_pair(&packet->key, flow);
	return NB_TCP_ACCEPT;
}

static __always_inline bool leased(const struct nb_flow *flow, __u32 generation, __u64 now)
{
	return flow->generation == generation && now < flow->lease_end;
}

static __always_inline int known_tcp(struct __sk_buff *skb, const struct nb_packet *packet,
				     struct nb_flow *flow, struct nb_device_counters *counters,
				     __u32 generation, __u64 now)
{
	__u8 flags = packet->tcp_flags;

	if (flags & NB_TCP_SYN) {
		/* A connection of the same tuple may begin: egress will see whether it does. */
		leave_note(skb, packet, flow_hash(&packet->key), generation, true);
		return pass(counters, NB_PASS_TCP_FLAGS);
	}
	if (flags & (NB_TCP_FIN | NB_TCP_RST)) {
		switch (close_flow(packet, flow, now)) {
		case NB_TCP_ACCEPT:
			return pass(counters, NB_PASS_TCP_FLAGS);
		case NB_TCP_IGNORE:
			/* conntrack would believe it: only the fast path can carry it. */
			if (leased(flow, generation, now))
				return forward(skb, packet, flow, counters, generation);
			return drop(counters, NB_DROP_TCP_INVALID);
		default:
			return drop(counters, NB_DROP_TCP_INVALID);
		}
	}
	if (!(flags & NB_TCP_ACK))
		return pass(counters, NB_PASS_TCP_FLAGS);
	if (!track(flow, packet, now))
		return pass(counters, NB_PASS_OUT_OF_WINDOW);
	if (flow->closing)
		return pass(counters, NB_PASS_TCP_FLAGS);
	if (flags & NB_TCP_URG)
		return pass_known(skb, packet, flow, counters, generation, NB_PASS_TCP_FLAGS);
	return NB_KNOWN_GOES_ON;
}

static __always_inline int known_flow(struct __sk_buff *skb, const struct nb_packet *packet,
				      struct nb_flow *flow, struct nb_device_counters *counters,
				      const struct nb_config *config, __u32 generation,
				      bool enabled)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	bool judged;
	int action;

	if (packet->key.protocol == IPPROTO_TCP) {
		action = known_tcp(skb, packet, flow, counters, generation, now);
		if (action != NB_KNOWN_GOES_ON)
			return action;
	} else {
		flow->seen_at = now;
	}
	judged = verdict_stands(config, now);
	if (enabled && judged && leased(flow, generation, now))
		return forward(skb, packet, flow, counters, generation);
	if (has_lost_connection(skb, packet, flow, now))
		return drop(counters, NB_DROP_LOST_CONNECTION);
	if (!enabled)
		return pass_known(skb, packet, flow, counters, generation, NB_PASS_DISABLED);
	if (!judged)
		return pass_known(skb, packet, flow, counters, generation, NB_PASS_UNJUDGED);
	return pass_expired(skb, packet, flow, counters, generation);
}

static __always_inline int fast_path(struct __sk_buff *skb, struct nb_device_counters *counters,
				     const struct nb_config *config, __u32 generation, bool enabled)
{
	struct nb_packet packet;
	struct nb_flow *flow = 0;
	int reason;

	reason = parse_packet(skb, &packet);
	if (reason)
		return pass(counters, enabled ? reason : NB_PASS_DISABLED);
	/* Known flows are followed even where none may be used: they have left conntrack's sight.
	 */
	if (may_be_cached(&packet.key.tuple))
		flow = bpf_map_lookup_elem(&flows, &packet.key);
	if (flow)
		return known_flow(skb, &packet, flow, counters, config, generation, enabled);
	if (!enabled)
		return pass(counters, NB_PASS_DISABLED);
	if (packet.key.protocol == IPPROTO_TCP &&
	    (packet.tcp_flags & (NB_TCP_FIN | NB_TCP_SYN | NB_TCP_RST | NB_TCP_URG | NB_TCP_ACK)) !=
		NB_TCP_ACK)
		return pass(counters, NB_PASS_TCP_FLAGS);
	if (!verdict_stands(config, bpf_ktime_get_coarse_ns()))
		return pass(counters, NB_PASS_UNJUDGED);
	return pass_unknown(skb, &packet, counters, generation);
}

SEC("tcx/ingress")
int nb_ingress(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex, first = 0;
	struct nb_device_counters *counters;
	const struct nb_device *device;
	struct nb_config *config;
	__u32 slot, generation;
	int reason;

	config = bpf_map_lookup_elem(&switches, &first);
	if (!config)
		return TC_ACT_UNSPEC;
	/* Read before the kernel path decides: what changes meanwhile makes the flow stale. */
	generation = *(volatile __u32 *)&config->generation;
	device = find_device(ifindex, generation);
	if (!device)
		return TC_ACT_UNSPEC;
	slot = device->slot;
	counters = bpf_map_lookup_elem(&device_counters, &slot);
	if (!counters)
		return TC_ACT_UNSPEC;
	counters->from_packets += 1;
	counters->from_bytes += skb->len;
	/* Ours alone: a sandbox may have set anything. */
	if (skb->tc_index)
		skb->tc_index = 0;

	if (device->flags & NB_DEVICE_SPOOF_CHECK) {
		reason = check_source(skb, device);
		if (reason != NB_NOT_SPOOFED)
			return drop(counters, reason);
	}
	if (device->flags & NB_DEVICE_ENDPOINT && !offload_is_harmless(skb))
		return drop(counters, NB_DROP_FALSE_OFFLOAD);
	return fast_path(skb, counters, config, generation,
			 config->enabled && device->flags & NB_DEVICE_FAST_PATH);
}
