/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Flows and connect hooks pass rules by that would have counted, delayed or dropped what they
 * carry. That no such rule is there is somebody's verdict: good as long as nothing changed that was
 * judged, and no longer than its maker lives to renew it.
 */
#ifndef NB_VERDICT_H
#define NB_VERDICT_H

#include <stdbool.h>
#include "abi.h"

/* now: CLOCK_MONOTONIC nanoseconds. Userspace changes the words at any time. */
static __always_inline bool verdict_stands(const struct nb_config *config, __u64 now)
{
	const volatile struct nb_config *words = config;

	return words->rules_seen == words->rules_judged && now < words->verdict_until;
}

#endif
