/* SPDX-License-Identifier: GPL-2.0-only */
/* Internet checksum differences (RFC 1624). */
#ifndef NB_CHECKSUM_H
#define NB_CHECKSUM_H

#include <linux/types.h>
#include "abi.h"

/* Folds to 32 bits, as the checksum helpers take it. */
static __always_inline __u32 checksum_fold32(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	return sum;
}

static __always_inline __u16 checksum_fold16(__u64 sum)
{
	sum = checksum_fold32(sum);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

static __always_inline __u64 checksum_change(__u32 from, __u32 to)
{
	/* Nothing changed must come out as 0, not as the other zero of one's complement. */
	return from == to ? 0 : (__u64)(__u32)~from + to;
}

static __always_inline __u64 checksum_change_address(const struct nb_address *from,
						     const struct nb_address *to)
{
	return checksum_change(from->words[0], to->words[0]) +
	       checksum_change(from->words[1], to->words[1]) +
	       checksum_change(from->words[2], to->words[2]) +
	       checksum_change(from->words[3], to->words[3]);
}

static __always_inline __u32 checksum_address_difference(const struct nb_tuple *from,
							 const struct nb_tuple *to)
{
	return checksum_fold32(checksum_change_address(&from->source, &to->source) +
			       checksum_change_address(&from->destination, &to->destination));
}

static __always_inline __u32 checksum_port_difference(const struct nb_tuple *from,
						      const struct nb_tuple *to)
{
	return checksum_fold32(checksum_change(from->source_port, to->source_port) +
			       checksum_change(from->destination_port, to->destination_port));
}

#endif
