/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef NB_COUNT_H
#define NB_COUNT_H

#include "lib/maps.h"

static __always_inline void count_event(__u32 event)
{
	__u64 *count = bpf_map_lookup_elem(&events, &event);

	if (count)
		*count += 1;
}

#endif
