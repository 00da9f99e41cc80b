/* SPDX-License-Identifier: GPL-2.0-only */
/* Addresses of both families in 16 bytes. */
#ifndef NB_ADDRESS_H
#define NB_ADDRESS_H

#include <stdbool.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include "abi.h"

#define NB_V4_PREFIX bpf_htonl(0x0000ffff)

static __always_inline void address_from_v4(struct nb_address *address, __u32 v4)
{
	address->words[0] = 0;
	address->words[1] = 0;
	address->words[2] = NB_V4_PREFIX;
	address->words[3] = v4;
}

static __always_inline void address_from_v6(struct nb_address *address, const __u32 *words)
{
	address->words[0] = words[0];
	address->words[1] = words[1];
	address->words[2] = words[2];
	address->words[3] = words[3];
}

static __always_inline bool address_is_v4(const struct nb_address *address)
{
	return !address->words[0] && !address->words[1] && address->words[2] == NB_V4_PREFIX;
}

static __always_inline bool address_equal(const struct nb_address *a, const struct nb_address *b)
{
	return !((a->words[0] ^ b->words[0]) | (a->words[1] ^ b->words[1]) |
		 (a->words[2] ^ b->words[2]) | (a->words[3] ^ b->words[3]));
}

static __always_inline bool address_is_zero(const struct nb_address *address)
{
	return !(address->words[0] | address->words[1] | address->words[2] | address->words[3]);
}

/* The tuple of the packets that answer. */
static __always_inline void tuple_invert(struct nb_tuple *to, const struct nb_tuple *from)
{
	to->source = from->destination;
	to->destination = from->source;
	to->source_port = from->destination_port;
	to->destination_port = from->source_port;
}

static __always_inline bool tuple_equal(const struct nb_tuple *a, const struct nb_tuple *b)
{
	return address_equal(&a->source, &b->source) &&
	       address_equal(&a->destination, &b->destination) &&
	       a->source_port == b->source_port && a->destination_port == b->destination_port;
}

#endif
