/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What an unconnected UDP socket asked for, and where the hook sent it: in the socket's own
 * storage, so that nothing is forgotten before the socket is closed. An answer bears its source
 * alone. It tells which question it belongs to only if no two questions of the socket went to that
 * source: what would make two is not the hook's to serve.
 */
#ifndef NB_ASKED_H
#define NB_ASKED_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "lib/address.h"
#include "lib/maps.h"

/* An address and port. */
struct nb_place {
	struct nb_address address;
	__u16 port;
};

enum nb_noted {
	NB_NOTED,
	/* Another question's target, in *clash. */
	NB_NOTED_CLASH,
	/* This socket has asked too many different things. */
	NB_NOTED_FULL,
};

/* Zero if they are the same. In one word, for the verifier to follow one path instead of many. */
static __always_inline __u32 place_difference(const struct nb_address *address, __u16 port,
					      const struct nb_place *place)
{
	__u32 difference = port ^ place->port;

	for (int i = 0; i < 4; i++) {
		difference |= address->words[i] ^ place->address.words[i];
		barrier_var(difference);
	}
	return difference;
}

static __always_inline bool place_is(const struct nb_address *address, __u16 port,
				     const struct nb_place *place)
{
	return !place_difference(address, port, place);
}

/* Index of the question `asked`, of an unused place if that is no question, or NB_ANSWERS. */
static __always_inline __u32 find_asked(struct nb_answers *answers, const struct nb_place *asked)
{
	__u32 i;

	for (i = 0; i < NB_ANSWERS; i++) {
		struct nb_answer *answer = &answers->list[i];

		if (!place_difference(&answer->asked, answer->asked_port, asked))
			break;
	}
	return i;
}

/* Index of the question, another than `asked` if given, that went to `target`, or NB_ANSWERS. */
static __always_inline __u32 find_target_of(struct nb_answers *answers,
					    const struct nb_place *target,
					    const struct nb_place *asked)
{
	__u32 i;

	for (i = 0; i < NB_ANSWERS; i++) {
		struct nb_answer *answer = &answers->list[i];

		if (place_difference(&answer->target, answer->target_port, target))
			continue;
		if (!asked || place_difference(&answer->asked, answer->asked_port, asked))
			break;
	}
	return i;
}

/*
 * Notes that `asked` went to `target`, in place of where it went before. Where another question of
 * the socket went there too, that one is given up if `force`, else nothing is noted.
 */
static __always_inline enum nb_noted note_asked(struct nb_answers *answers,
						const struct nb_place *asked,
						const struct nb_place *target, bool force,
						struct nb_place *clash)
{
	const struct nb_place nothing = {};
	enum nb_noted result = NB_NOTED;
	__u32 index;

	bpf_spin_lock(&answers->lock);
	index = find_target_of(answers, target, asked);
	if (index < NB_ANSWERS && !force) {
		clash->address = answers->list[index].asked;
		clash->port = answers->list[index].asked_port;
		result = NB_NOTED_CLASH;
		goto unlock;
	}
	if (index >= NB_ANSWERS)
		index = find_asked(answers, asked);
	if (index >= NB_ANSWERS)
		index = find_asked(answers, &nothing);
	/* What is not noted can't be told apart any more. */
	if (index >= NB_ANSWERS)
		answers->full |= force;
	if (index >= NB_ANSWERS || answers->full) {
		result = NB_NOTED_FULL;
		goto unlock;
	}
	answers->list[index].asked = asked->address;
	answers->list[index].asked_port = asked->port;
	answers->list[index].target = target->address;
	answers->list[index].target_port = target->port;
unlock:
	bpf_spin_unlock(&answers->lock);
	return result;
}

/* Forgets a question. */
static __always_inline void drop_asked(struct nb_answers *answers, const struct nb_place *asked)
{
	const struct nb_answer nothing = {};
	__u32 index;

	bpf_spin_lock(&answers->lock);
	index = find_asked(answers, asked);
	if (index < NB_ANSWERS)
		answers->list[index] = nothing;
	bpf_spin_unlock(&answers->lock);
}

/* The question that went to `from`; false if none did. */
static __always_inline bool asked_of(struct nb_answers *answers, const struct nb_place *from,
				     struct nb_place *asked)
{
	__u32 index;

	bpf_spin_lock(&answers->lock);
	index = find_target_of(answers, from, 0);
	if (index < NB_ANSWERS) {
		asked->address = answers->list[index].asked;
		asked->port = answers->list[index].asked_port;
	}
	bpf_spin_unlock(&answers->lock);
	return index < NB_ANSWERS;
}

#endif
