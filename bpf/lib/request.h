/* SPDX-License-Identifier: GPL-2.0-only */
/* Asking userspace to change what programs can't: the TCP state of a conntrack entry. */
#ifndef NB_REQUEST_H
#define NB_REQUEST_H

#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "lib/maps.h"

/* An answer takes less than a millisecond; who is not answered asks again. */
#define NB_REQUEST_INTERVAL 100000000U

static __always_inline void request(const struct nb_flow_key *key, __u8 kind)
{
	struct nb_request message = {};

	message.tuple = key->tuple;
	message.family = key->family;
	message.kind = kind;
	/* A full buffer: it will be asked for again, or the entry times out. */
	bpf_ringbuf_output(&requests, &message, sizeof(message), 0);
}

#endif
