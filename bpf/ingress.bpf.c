// SPDX-License-Identifier: GPL-2.0-only
/* What arrives from an endpoint or an uplink: counted, checked, and sent on if its way is known. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "lib/count.h"
#include "lib/device.h"
#include "lib/maps.h"
#include "lib/note.h"
#include "lib/offload.h"
#include "lib/packet.h"
#include "lib/presence.h"
#include "lib/rewrite.h"
#include "lib/spoof.h"
#include "lib/verdict.h"

/* skb->pkt_type, linux/if_packet.h */
#define NB_PACKET_HOST 0

/* A flow that brings fewer packets per longest lease than this is not renewed every time. */
#define NB_SLOW_FLOW_PACKETS 2
#define NB_LONGEST_LEASE 1000000000U

/* FIN and RST: neither direction stays in the cache. */
static __always_inline void forget_flow(const struct nb_packet *packet)
{
	struct nb_flow *flow = bpf_map_lookup_elem(&flows, &packet->key);
	struct nb_flow_key reverse = {};

	if (!flow)
		return;
	reverse.ifindex = flow->path.output_ifindex;
	tuple_invert(&reverse.tuple, &flow->path.translated);
	reverse.protocol = packet->key.protocol;
	reverse.family = packet->key.family;
	bpf_map_delete_elem(&flows, &reverse);
	bpf_map_delete_elem(&flows, &packet->key);
	count_event(NB_INVALIDATED);
}

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

/* The packet goes by the kernel path, and egress is to learn where that leads. */
static __always_inline int pass_unknown(struct __sk_buff *skb, const struct nb_packet *packet,
					struct nb_device_counters *counters, __u32 generation)
{
	__u32 hash;

	if (sampled(counters)) {
		hash = flow_hash(&packet->key);
		if (flow_is_worth_learning(hash))
			leave_note(skb, packet, hash, generation);
	}
	return pass(counters, NB_PASS_UNKNOWN_FLOW);
}

/* The lease is over: this packet renews it, unless the flow is too slow to gain from it. */
static __always_inline int pass_expired(struct __sk_buff *skb, const struct nb_packet *packet,
					const struct nb_flow *flow,
					struct nb_device_counters *counters, __u32 generation)
{
	bool slow = flow->lease >= NB_LONGEST_LEASE && flow->lease_packets < NB_SLOW_FLOW_PACKETS;

	count_event(flow->generation == generation ? NB_EXPIRED : NB_INVALIDATED);
	if (!slow || sampled(counters))
		leave_note(skb, packet, flow_hash(&packet->key), generation);
	return pass(counters, NB_PASS_LEASE_OVER);
}

static __always_inline int forward(struct __sk_buff *skb, const struct nb_packet *packet,
				   struct nb_flow *flow, struct nb_device_counters *counters)
{
	int reason = check_flow(packet, flow);
	__u32 bytes;

	if (reason)
		return pass(counters, reason);
	switch (rewrite_packet(skb, packet, &flow->path)) {
	case NB_REWRITTEN:
		break;
	case NB_UNTOUCHED:
		return pass(counters, NB_PASS_NOT_WRITABLE);
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

static __always_inline int fast_path(struct __sk_buff *skb, struct nb_device_counters *counters,
				     const struct nb_config *config, __u32 generation)
{
	struct nb_packet packet;
	struct nb_flow *flow;
	bool may_have;
	__u64 now;
	int reason;

	reason = parse_packet(skb, &packet);
	if (reason)
		return pass(counters, reason);
	if (packet.key.protocol == IPPROTO_TCP &&
	    (packet.tcp_flags & (NB_TCP_FIN | NB_TCP_SYN | NB_TCP_RST)) == NB_TCP_SYN)
		return pass(counters, NB_PASS_TCP_FLAGS);
	now = bpf_ktime_get_coarse_ns();
	may_have = may_be_cached(&packet.key.tuple, now);
	if (packet.key.protocol == IPPROTO_TCP) {
		__u8 flags = packet.tcp_flags;

		if (may_have && flags & (NB_TCP_FIN | NB_TCP_RST))
			forget_flow(&packet);
		if ((flags & (NB_TCP_FIN | NB_TCP_SYN | NB_TCP_RST | NB_TCP_URG | NB_TCP_ACK)) !=
		    NB_TCP_ACK)
			return pass(counters, NB_PASS_TCP_FLAGS);
	}
	if (!verdict_stands(config, now))
		return pass(counters, NB_PASS_UNJUDGED);
	flow = may_have ? bpf_map_lookup_elem(&flows, &packet.key) : 0;
	if (!flow)
		return pass_unknown(skb, &packet, counters, generation);
	if (flow->generation != generation || now >= flow->lease_end)
		return pass_expired(skb, &packet, flow, counters, generation);
	return forward(skb, &packet, flow, counters);
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
	if (!config->enabled || !(device->flags & NB_DEVICE_FAST_PATH))
		return pass(counters, NB_PASS_DISABLED);
	return fast_path(skb, counters, config, generation);
}
