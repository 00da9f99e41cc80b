/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What passes between conntrack and the numbers of tcp.h. They begin as conntrack's. Once packets
 * have passed it by, conntrack's own stand still: tcp_in_window() leaves as they are the numbers of
 * an entry to which it must be liberal. From then on the timeout that it sets is set right after
 * it.
 */
#ifndef NB_TCP_CONNTRACK_H
#define NB_TCP_CONNTRACK_H

#include "lib/conntrack.h"
#include "lib/tcp.h"

#define NB_NANOSECONDS_PER_MILLISECOND 1000000
/* A quarter of all sequence numbers. */
#define NB_OLD_ACK (1U << 30)

/* The sides' numbers as conntrack has them: a window's end is noted with whom it binds. */
static __always_inline void read_states(struct nb_tcp_side *side, struct ip_ct_tcp_state *own,
					struct ip_ct_tcp_state *other)
{
	side->end = BPF_CORE_READ(own, td_end);
	side->ack = BPF_CORE_READ(own, td_maxack);
	side->window = BPF_CORE_READ(own, td_maxwin);
	side->scale = BPF_CORE_READ(own, td_scale);
	side->edge = BPF_CORE_READ(other, td_maxend);
	side->peer_window = BPF_CORE_READ(other, td_maxwin);
}

/* What conntrack knows of a direction. An index that varies can't be relocated (CO-RE). */
static __always_inline void read_side(struct nb_tcp_side *side, struct nf_conn *entry, bool reply)
{
	if (reply)
		read_states(side, &entry->proto.tcp.seen[1], &entry->proto.tcp.seen[0]);
	else
		read_states(side, &entry->proto.tcp.seen[0], &entry->proto.tcp.seen[1]);
}

/* Takes over what conntrack has seen and ingress has not. Only while conntrack sees all. */
static __always_inline void merge_side(struct nb_tcp_side *side, struct nf_conn *entry, bool reply)
{
	struct nb_tcp_side theirs = {};

	read_side(&theirs, entry, reply);
	if (sequence_after(theirs.end, side->end))
		side->end = theirs.end;
	if (sequence_after(theirs.ack, side->ack))
		side->ack = theirs.ack;
	if (sequence_after(theirs.edge, side->edge))
		side->edge = theirs.edge;
	if (side->window < theirs.window)
		side->window = theirs.window;
	side->peer_window = theirs.peer_window;
}

static __always_inline struct nf_tcp_net *tcp_settings(struct nf_conn *entry)
{
	struct net *net = BPF_CORE_READ(entry, ct_net.net);

	return &net->ct.nf_ct_proto.tcp;
}

static __always_inline bool host_is_liberal(struct nf_conn *entry)
{
	return BPF_CORE_READ(tcp_settings(entry), tcp_be_liberal);
}

static __always_inline bool host_ignores_invalid_rst(struct nf_conn *entry)
{
	return BPF_CORE_READ(tcp_settings(entry), tcp_ignore_invalid_rst);
}

/*
 * Whether conntrack's highest acknowledgement is so old that soon it would pass for a later one,
 * and a RST for an invalid one.
 */
static __always_inline bool ack_grows_old(struct nf_conn *entry, const struct nb_flow *flow)
{
	struct ip_ct_tcp_state *side =
	    flow->reply ? &entry->proto.tcp.seen[1] : &entry->proto.tcp.seen[0];

	return BPF_CORE_READ(side, flags) & IP_CT_TCP_FLAG_MAXACK_SET &&
	       flow->side.ack - BPF_CORE_READ(side, td_maxack) > NB_OLD_ACK;
}

static __always_inline bool unacknowledged(const struct nb_flow *sender,
					   const struct nb_flow *receiver)
{
	return sender->seeded && receiver->seeded &&
	       sequence_after(sender->side.end, receiver->side.ack);
}

/*
 * Which timeout conntrack would have set for this packet: the end of nf_conntrack_tcp_packet().
 * During a lease the acknowledgement of new data may pass conntrack by, so such data counts as
 * acknowledged; if it is not, it comes again, until it comes here.
 */
static __always_inline __u32 timeout_kind(const struct nb_flow *flow, const struct nb_flow *partner,
					  __u8 max_retrans, __u64 now)
{
	bool leased = flow->lease_end > now || partner->lease_end > now;
	bool waiting = unacknowledged(flow, partner) || unacknowledged(partner, flow);

	if (flow->side.repeats >= max_retrans && partner->seen_at < flow->repeats_since)
		return TCP_CONNTRACK_RETRANS;
	if (waiting && (flow->repeated || !leased))
		return TCP_CONNTRACK_UNACK;
	if (!flow->side.last_window)
		return TCP_CONNTRACK_RETRANS;
	return TCP_CONNTRACK_ESTABLISHED;
}

/* Gives an established connection the timeout that it would have had conntrack seen all of it. */
static __always_inline void settle_timeout(struct nf_conn *entry,
					   const struct nb_connection *connection,
					   const struct nb_flow *flow,
					   const struct nb_flow *partner, __u64 tick_nanoseconds,
					   __u64 now)
{
	struct nf_tcp_net *settings = tcp_settings(entry);
	__u32 established, ticks, kind;
	__u64 milliseconds;

	if (connection->tcp_state != TCP_CONNTRACK_ESTABLISHED ||
	    !(connection->status & IPS_ASSURED) || connection->timeout_policy)
		return;
	kind = timeout_kind(flow, partner, BPF_CORE_READ(settings, tcp_max_retrans), now);
	established = BPF_CORE_READ(settings, timeouts[TCP_CONNTRACK_ESTABLISHED]);
	if (kind == TCP_CONNTRACK_RETRANS)
		ticks = BPF_CORE_READ(settings, timeouts[TCP_CONNTRACK_RETRANS]);
	else if (kind == TCP_CONNTRACK_UNACK)
		ticks = BPF_CORE_READ(settings, timeouts[TCP_CONNTRACK_UNACK]);
	else
		ticks = established;
	if (ticks > established)
		ticks = established;
	milliseconds = ticks * tick_nanoseconds / NB_NANOSECONDS_PER_MILLISECOND;
	/* Refused, rightly, for an entry whose timeout is fixed. */
	bpf_ct_change_timeout(entry, milliseconds > (__u32)-1 ? (__u32)-1 : milliseconds);
}

#endif
