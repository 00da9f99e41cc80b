/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What conntrack would know of a TCP connection had it seen all of it, and how it would judge:
 * tcp_in_window() and nf_conntrack_tcp_packet() of net/netfilter/nf_conntrack_proto_tcp.c, the same
 * in Linux 6.1 and 6.18. Each direction keeps its own numbers, so that a fast packet touches
 * nothing but its own flow.
 */
#ifndef NB_TCP_H
#define NB_TCP_H

#include <stdbool.h>
#include "abi.h"
#include "lib/packet.h"

/* MAXACKWINCONST: an acknowledgement may be this much older than the data. */
#define NB_ACK_WINDOW 66000U
/* Windows are at most 1 GiB (RFC 7323); twice that would be half of all numbers. */
#define NB_LARGEST_WINDOW (1U << 28)

static __always_inline bool sequence_before(__u32 a, __u32 b)
{
	return (__s32)(a - b) < 0;
}

static __always_inline bool sequence_after(__u32 a, __u32 b)
{
	return sequence_before(b, a);
}

/* The first packet seen of a connection whose beginning nobody has told. */
static __always_inline void seed_side(struct nb_tcp_side *side, const struct nb_packet *packet)
{
	side->end = packet->tcp_end;
	side->ack = packet->tcp_ack;
	side->window = (__u32)packet->tcp_window << side->scale;
	side->edge = packet->tcp_ack + side->window;
}

/*
 * Whether the packet lies in the connection's windows, by what its own direction knows. That is
 * somewhat wider than by both, which is as good here: nobody gets in by guessing, and what is in
 * between is for the endpoints to judge, as ever.
 */
static __always_inline bool near_window(const struct nb_tcp_side *side,
					const struct nb_packet *packet)
{
	__u32 peer = side->peer_window < NB_LARGEST_WINDOW ? side->peer_window : NB_LARGEST_WINDOW;
	__u32 own = side->window < NB_LARGEST_WINDOW ? side->window : NB_LARGEST_WINDOW;
	__u32 reach = 2 * peer + NB_ACK_WINDOW, oldest = side->ack - own - NB_ACK_WINDOW;

	return packet->tcp_end - side->end + reach <= 2 * reach &&
	       packet->tcp_ack - oldest <= side->edge + NB_ACK_WINDOW - oldest;
}

static __always_inline void note_repetition(struct nb_flow *flow, const struct nb_packet *packet,
					    __u64 now)
{
	struct nb_tcp_side *side = &flow->side;

	if (side->last_sequence == packet->tcp_sequence && side->last_ack == packet->tcp_ack &&
	    side->last_end == packet->tcp_end && side->last_window == packet->tcp_window) {
		if (!side->repeats)
			flow->repeats_since = flow->seen_at;
		if (side->repeats < 255)
			side->repeats += 1;
		return;
	}
	side->last_sequence = packet->tcp_sequence;
	side->last_ack = packet->tcp_ack;
	side->last_end = packet->tcp_end;
	side->last_window = packet->tcp_window;
	side->repeats = 0;
}

/* Takes the numbers of a packet; false, and nothing taken, if they can't be the connection's. */
static __always_inline bool track(struct nb_flow *flow, const struct nb_packet *packet, __u64 now)
{
	struct nb_tcp_side *side = &flow->side;
	__u32 window = (__u32)packet->tcp_window << side->scale;

	if (!flow->seeded) {
		seed_side(side, packet);
		flow->seeded = 1;
	} else if (flow->trusted && !near_window(side, packet)) {
		return false;
	}
	flow->repeated =
	    packet->tcp_end != packet->tcp_sequence && !sequence_after(packet->tcp_end, side->end);
	note_repetition(flow, packet, now);
	flow->seen_at = now;
	if (sequence_after(packet->tcp_end, side->end))
		side->end = packet->tcp_end;
	if (sequence_after(packet->tcp_ack, side->ack))
		side->ack = packet->tcp_ack;
	if (side->window < window)
		side->window = window;
	/* A closed window still admits a probe. */
	window += !window;
	if (sequence_after(packet->tcp_ack + window, side->edge))
		side->edge = packet->tcp_ack + window;
	return true;
}

enum nb_judgement {
	NB_TCP_ACCEPT,
	/* Let through without believing it. */
	NB_TCP_IGNORE,
	NB_TCP_INVALID,
};

static __always_inline __u32 ack_window(const struct nb_tcp_side *side)
{
	return side->window > NB_ACK_WINDOW ? side->window : NB_ACK_WINDOW;
}

/* tcp_in_window(). Selective acknowledgements are left out: they only loosen the lower bound. */
static __always_inline enum nb_judgement judge_window(const struct nb_tcp_side *sender,
						      const struct nb_tcp_side *receiver,
						      const struct nb_packet *packet)
{
	__u32 ack = packet->tcp_ack, end = packet->tcp_end;
	bool in_receive_window =
	    !receiver->window || sequence_after(end, sender->end - receiver->window - 1);
	bool old_ack;

	if (!(packet->tcp_flags & NB_TCP_ACK) || (packet->tcp_flags & NB_TCP_RST && !ack))
		ack = receiver->end;
	old_ack = !sequence_after(ack, receiver->end - ack_window(sender) - 1);
	if (!sequence_before(ack, receiver->end + 1))
		return NB_TCP_INVALID;
	if (!sequence_before(packet->tcp_sequence, receiver->edge + 1)) {
		if (receiver->window && in_receive_window && !old_ack &&
		    end - receiver->edge + 1 <= receiver->window)
			return NB_TCP_IGNORE;
		return NB_TCP_INVALID;
	}
	return in_receive_window && !old_ack ? NB_TCP_ACCEPT : NB_TCP_IGNORE;
}

/* Whether a RST ends the connection at once rather than let the other side ask (RFC 5961). */
static __always_inline bool reset_is_exact(const struct nb_flow *flow,
					   const struct nb_tcp_side *receiver,
					   const struct nb_packet *packet)
{
	return packet->tcp_sequence == receiver->ack || packet->tcp_sequence == flow->side.last_end;
}

static __always_inline enum nb_judgement judge_close(const struct nb_flow *flow,
						     const struct nb_tcp_side *receiver,
						     const struct nb_packet *packet)
{
	if (packet->tcp_flags & NB_TCP_RST && !flow->ignore_invalid_rst &&
	    sequence_before(packet->tcp_sequence, receiver->ack))
		return NB_TCP_INVALID;
	return judge_window(&flow->side, receiver, packet);
}

#endif
