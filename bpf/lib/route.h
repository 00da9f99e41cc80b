/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The route that the kernel path took with a leaving packet: it is still attached to it. Asking the
 * routing table anew could not know of source, mark and whatever else chose it.
 */
#ifndef NB_ROUTE_H
#define NB_ROUTE_H

#include <bpf/bpf_core_read.h>
#include "lib/buffer.h"

/* SKB_DST_PTRMASK (linux/skbuff.h) and DST_METRICS_PTRMASK (net/dst.h), inverted. */
#define NB_ROUTE_FLAGS 1UL
#define NB_METRICS_FLAGS 3UL
/* RTAX_LOCK and RTAX_MTU (linux/rtnetlink.h) stand first. */
#define NB_LOCK_MTU (1U << 2)
/* ip_dst_mtu_maybe_forward(): where the MTU is locked and unknown. */
#define NB_LEAST_IPV4_MTU 576
#define NB_ROUTE_UNKNOWN 0

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct ipv6_devconf {
	__s32 mtu6;
};

struct inet6_dev {
	struct ipv6_devconf cnf;
};

struct net_device {
	unsigned int mtu;
	struct inet6_dev *ip6_ptr;
};

struct lwtunnel_state;

struct dst_entry {
	struct net_device *dev;
	unsigned long _metrics;
	struct lwtunnel_state *lwtstate;
};

struct rtable {
	struct dst_entry dst;
	__u32 rt_mtu_locked : 1, rt_pmtu : 31;
};

#pragma clang attribute pop

struct nb_metrics {
	__u32 lock;
	__u32 mtu;
};

static __always_inline __u32 at_most(__u32 known, __u32 limit)
{
	return limit && limit < known ? limit : known;
}

/* As ip_dst_mtu_maybe_forward(), with what path MTU discovery found whether it counts or not. */
static __always_inline __u32 limit_ipv4(__u32 mtu, struct dst_entry *route,
					const struct nb_metrics *metrics)
{
	struct rtable *table = (struct rtable *)route;
	__u32 discovered = BPF_CORE_READ_BITFIELD_PROBED(table, rt_pmtu);
	bool locked =
	    BPF_CORE_READ_BITFIELD_PROBED(table, rt_mtu_locked) || metrics->lock & NB_LOCK_MTU;

	if (locked && !metrics->mtu)
		mtu = at_most(mtu, NB_LEAST_IPV4_MTU);
	return at_most(mtu, discovered);
}

/* As ip6_mtu(): what was discovered is the route's own metric, a copy made for the destination. */
static __always_inline __u32 limit_ipv6(__u32 mtu, struct net_device *device)
{
	struct inet6_dev *settings;

	if (!bpf_core_field_exists(device->ip6_ptr))
		return mtu;
	settings = BPF_CORE_READ(device, ip6_ptr);
	return settings ? at_most(mtu, BPF_CORE_READ(settings, cnf.mtu6)) : mtu;
}

/*
 * Bytes of the largest packet that the kernel path sends whole where this packet went: `mtu`, or
 * less. NB_ROUTE_UNKNOWN if that can't be said: a route that wraps packets up, or none.
 */
static __always_inline __u32 route_mtu(struct __sk_buff *skb, __u8 family, __u32 mtu)
{
	struct dst_entry *route =
	    (void *)(BPF_CORE_READ(kernel_buffer(skb), _skb_refdst) & ~NB_ROUTE_FLAGS);
	struct nb_metrics metrics = {};
	struct net_device *device;
	void *found;

	if (!route || BPF_CORE_READ(route, lwtstate))
		return NB_ROUTE_UNKNOWN;
	found = (void *)(BPF_CORE_READ(route, _metrics) & ~NB_METRICS_FLAGS);
	if (bpf_probe_read_kernel(&metrics, sizeof(metrics), found))
		return NB_ROUTE_UNKNOWN;
	device = BPF_CORE_READ(route, dev);
	/* The bridge's, where the packet leaves by its port. */
	mtu = at_most(at_most(mtu, BPF_CORE_READ(device, mtu)), metrics.mtu);
	return family == 4 ? limit_ipv4(mtu, route, &metrics) : limit_ipv6(mtu, device);
}

#endif
