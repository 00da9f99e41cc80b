/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The maps all programs share, defined in maps.bpf.c. Sizes marked "set before load" are the
 * loader's to choose.
 */
#ifndef NB_MAPS_H
#define NB_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"

/* Notes per CPU: packets between ingress and egress at one time. A power of two. */
#define NB_NOTES 64
/* Flows per CPU that were seen once lately. A power of two. */
#define NB_SIGHTINGS 4096
/* Devices per CPU whose description is at hand. A power of two. */
#define NB_DEVICE_COPIES 256
/* Different things an unconnected UDP socket may ask the hook for in its life. */
#define NB_ANSWERS 8

/* The switches. Mapped into userspace, which changes them with plain atomic stores. */
struct nb_config_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct nb_config);
};
extern struct nb_config_map switches SEC(".maps");

/* Attached devices by ifindex. Set before load. */
struct nb_devices_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct nb_device);
};
extern struct nb_devices_map devices SEC(".maps");

/* Descriptions of the devices this CPU had to do with lately. See device.h. */
struct nb_device_copies_map {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NB_DEVICE_COPIES);
	__type(key, __u32);
	__type(value, struct nb_device_copy);
};
extern struct nb_device_copies_map device_copies SEC(".maps");

/* Counters by a device's slot. Set before load. */
struct nb_device_counters_map {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct nb_device_counters);
};
extern struct nb_device_counters_map device_counters SEC(".maps");

/*
 * The cache. Set before load. Full, it takes no more: what has left conntrack's sight must not be
 * forgotten for something new.
 */
struct nb_flows_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct nb_flow_key);
	__type(value, struct nb_flow);
};
extern struct nb_flows_map flows SEC(".maps");

/* See presence.h. One element, because elements of their own would be padded to eight bytes. */
struct nb_presence_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct nb_presence);
};
extern struct nb_presence_map presence SEC(".maps");

/* Ingress's notes for egress. */
struct nb_notes_map {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NB_NOTES);
	__type(key, __u32);
	__type(value, struct nb_note);
};
extern struct nb_notes_map notes SEC(".maps");

/* Hashes of flows seen once: a flow is learned at its second sampled packet. */
struct nb_sightings_map {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NB_SIGHTINGS);
	__type(key, __u32);
	__type(value, __u32);
};
extern struct nb_sightings_map sightings SEC(".maps");

/* Where egress puts a flow together, and one that replaces it: too big for the stack. */
struct nb_scratch_map {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct nb_flow);
};
extern struct nb_scratch_map scratch SEC(".maps");

/* struct nb_request, for userspace. */
struct nb_requests_map {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
};
extern struct nb_requests_map requests SEC(".maps");

/* Counts by enum nb_event. */
struct nb_events_map {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NB_EVENT_SLOTS);
	__type(key, __u32);
	__type(value, __u64);
};
extern struct nb_events_map events SEC(".maps");

/* Published ports for the connect hooks. Set before load. */
struct nb_ports_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct nb_port_key);
	__type(value, struct nb_port);
};
extern struct nb_ports_map ports SEC(".maps");

/* Sockets sent to a port's target, by the port's slot. Set before load. */
struct nb_port_connects_map {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, __u64);
};
extern struct nb_port_connects_map port_connects SEC(".maps");

/* The host's own addresses, loopback left out, and those of ports' targets: enum nb_address_kind.
 */
struct nb_local_addresses_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct nb_address);
	__type(value, __u32);
};
extern struct nb_local_addresses_map local_addresses SEC(".maps");

/* Whose link-local addresses are. See linklocal.h. */
struct nb_link_locals_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct nb_link_local_key);
	__type(value, struct nb_link_local);
};
extern struct nb_link_locals_map link_locals SEC(".maps");

/* Counts by enum nb_connect_result. */
struct nb_connect_results_map {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NB_CONNECT_SLOTS);
	__type(key, __u32);
	__type(value, __u64);
};
extern struct nb_connect_results_map connect_results SEC(".maps");

/* The address a connected socket asked for. */
struct nb_peers_map {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct nb_peer);
};
extern struct nb_peers_map peers SEC(".maps");

/* What unconnected UDP sockets asked for, to put into their answers. See asked.h. */
struct nb_answers {
	struct bpf_spin_lock lock;
	/* The socket has asked endpoints directly in more ways than there is room to note. */
	__u32 full;
	struct nb_answer list[NB_ANSWERS];
};

struct nb_answers_map {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct nb_answers);
};
extern struct nb_answers_map answers SEC(".maps");

#endif
