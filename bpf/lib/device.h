/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the programs know of a device. They need it for each packet on each side, and a hash lookup
 * is the dearest step of a short connection: so each CPU keeps copies of those it meets. Userspace
 * raises the generation after it has changed or removed a device, which ends all copies.
 */
#ifndef NB_DEVICE_H
#define NB_DEVICE_H

#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "lib/maps.h"

static __always_inline const struct nb_device *find_device(__u32 ifindex, __u32 generation)
{
	__u32 slot = ifindex & (NB_DEVICE_COPIES - 1);
	struct nb_device_copy *copy = bpf_map_lookup_elem(&device_copies, &slot);
	struct nb_device *device;

	if (copy && copy->ifindex == ifindex && copy->generation == generation)
		return &copy->device;
	device = bpf_map_lookup_elem(&devices, &ifindex);
	if (!device || !copy)
		return device;
	copy->device = *device;
	copy->ifindex = ifindex;
	copy->generation = generation;
	return &copy->device;
}

#endif
