/* SPDX-License-Identifier: GPL-2.0-only */
/* The two directions of a connection: each is a flow, and each finds the other by its own path. */
#ifndef NB_PAIR_H
#define NB_PAIR_H

#include "lib/address.h"
#include "lib/maps.h"
#include "lib/presence.h"

static __always_inline void reverse_key(struct nb_flow_key *reverse, const struct nb_flow_key *key,
					const struct nb_path *path)
{
	reverse->ifindex = path->output_ifindex;
	tuple_invert(&reverse->tuple, &path->translated);
	reverse->protocol = key->protocol;
	reverse->family = key->family;
	reverse->padding = 0;
}

static __always_inline struct nb_flow *find_partner(const struct nb_flow_key *key,
						    const struct nb_flow *flow)
{
	struct nb_flow_key reverse;

	reverse_key(&reverse, key, &flow->path);
	return bpf_map_lookup_elem(&flows, &reverse);
}

static __always_inline void forget_pair(const struct nb_flow_key *key, const struct nb_flow *flow)
{
	struct nb_flow_key reverse;

	reverse_key(&reverse, key, &flow->path);
	delete_flow(&reverse);
	delete_flow(key);
}

#endif
