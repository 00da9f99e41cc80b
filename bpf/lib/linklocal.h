/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Link-local addresses of an endpoint. One follows from its MAC (RFC 4291, appendix A); others a
 * sandbox chooses by itself: stable and opaque (RFC 7217), or by hand. Whoever uses one first on a
 * link keeps it, as duplicate address detection would have it (RFC 6620), but never one that is the
 * bridge's or follows from another endpoint's MAC: those are taken before.
 */
#ifndef NB_LINKLOCAL_H
#define NB_LINKLOCAL_H

#include "lib/address.h"
#include "lib/maps.h"

static __always_inline bool is_link_local(const struct nb_address *address)
{
	return (address->words[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

static __always_inline bool follows_from_mac(const struct nb_address *address, const __u16 *mac)
{
	const __u8 *octets = (const __u8 *)mac;

	return address->words[0] == bpf_htonl(0xfe800000) && !address->words[1] &&
	       address->words[2] == bpf_htonl((__u32)(octets[0] ^ 2) << 24 | octets[1] << 16 |
					      octets[2] << 8 | 0xff) &&
	       address->words[3] ==
		   bpf_htonl(0xfe000000 | octets[3] << 16 | octets[4] << 8 | octets[5]);
}

static __always_inline bool is_reserved(const struct nb_device *device,
					const struct nb_address *address)
{
	for (__u32 i = 0; i < NB_DEVICE_RESERVED; i++) {
		if (i >= device->reserved_count)
			return false;
		if (address_equal(&device->reserved[i], address))
			return true;
	}
	return false;
}

/* Whether the endpoint may take one more. Its count is the entry of the link 0. */
static __always_inline bool may_claim(__u32 ifindex)
{
	struct nb_link_local_key key = {.address.words[3] = ifindex};
	struct nb_link_local none = {.owner = ifindex}, *count;

	count = bpf_map_lookup_elem(&link_locals, &key);
	if (!count) {
		bpf_map_update_elem(&link_locals, &key, &none, BPF_NOEXIST);
		count = bpf_map_lookup_elem(&link_locals, &key);
		if (!count)
			return false;
	}
	if (count->claims >= NB_LINK_LOCAL_CLAIMS)
		return false;
	__sync_fetch_and_add(&count->claims, 1);
	return true;
}

/* Whether the link-local address is the endpoint's; one that is nobody's becomes it. */
static __always_inline bool owns_link_local(__u32 ifindex, const struct nb_device *device,
					    const struct nb_address *address)
{
	struct nb_link_local_key key = {.link = device->link, .address = *address};
	struct nb_link_local claim = {.owner = ifindex}, *known;

	if (follows_from_mac(address, device->mac))
		return true;
	if (is_reserved(device, address))
		return false;
	known = bpf_map_lookup_elem(&link_locals, &key);
	if (known)
		return known->owner == ifindex;
	return may_claim(ifindex) && !bpf_map_update_elem(&link_locals, &key, &claim, BPF_NOEXIST);
}

#endif
