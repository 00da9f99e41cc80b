// SPDX-License-Identifier: GPL-2.0-only
/*
 * The host's own sockets: what they ask of a local address and a published port goes straight to
 * the port's target. What can't be served so is left alone, for the reserved socket to take.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "lib/address.h"
#include "lib/asked.h"
#include "lib/maps.h"
#include "lib/verdict.h"

#define NB_ALLOW 1
#define NB_AF_INET6 10

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct sock_common {
	unsigned char skc_ipv6only : 1;
};

#pragma clang attribute pop

/* A call of a socket, in one form for both families. */
struct nb_call {
	struct nb_address address;
	__u16 port;
	__u8 protocol;
	/* Through a hook of IPv6, be the address v4-mapped or not. */
	bool ipv6;
	/* sendmsg() rather than connect(). */
	bool message;
	/* To an endpoint by its own address. */
	bool direct;
};

static __always_inline int count_call(__u32 result)
{
	__u64 *count = bpf_map_lookup_elem(&connect_results, &result);

	/* These hooks may be interrupted on their CPU, unlike those for packets. */
	if (count)
		__sync_fetch_and_add(count, 1);
	return NB_ALLOW;
}

static __always_inline void count_port(__u32 slot)
{
	__u64 *count = bpf_map_lookup_elem(&port_connects, &slot);

	if (count)
		__sync_fetch_and_add(count, 1);
}

static __always_inline bool is_loopback(const struct nb_address *address)
{
	if (address_is_v4(address))
		return (address->words[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return !address->words[0] && !address->words[1] && !address->words[2] &&
	       address->words[3] == bpf_htonl(1);
}

static __always_inline bool is_any(const struct nb_address *address)
{
	return address_is_zero(address) || (address_is_v4(address) && !address->words[3]);
}

/* To connect to "any" is to connect to loopback (Linux; POSIX is silent). */
static __always_inline void any_to_loopback(struct nb_address *address)
{
	if (address_is_v4(address))
		address->words[3] = bpf_htonl(INADDR_LOOPBACK);
	else
		address->words[3] = bpf_htonl(1);
}

static __always_inline struct nb_port *find_port(const struct nb_address *address, __u16 number,
						 __u8 protocol)
{
	struct nb_port_key key = {.port = number, .protocol = protocol};
	struct nb_port *port;

	key.address = *address;
	port = bpf_map_lookup_elem(&ports, &key);
	if (port)
		return port;
	/* Then the wildcard of the same family: 0.0.0.0 or ::. */
	key.address.words[3] = 0;
	if (!address_is_v4(address)) {
		key.address.words[0] = 0;
		key.address.words[1] = 0;
		key.address.words[2] = 0;
	}
	return bpf_map_lookup_elem(&ports, &key);
}

static __always_inline bool is_v6only(struct bpf_sock *sk)
{
	__u8 common[64] = {};
	__u32 offset = __builtin_preserve_field_info(((struct sock_common *)0)->skc_ipv6only,
						     BPF_FIELD_BYTE_OFFSET);
	__u32 size = __builtin_preserve_field_info(((struct sock_common *)0)->skc_ipv6only,
						   BPF_FIELD_BYTE_SIZE);
	__u32 left = __builtin_preserve_field_info(((struct sock_common *)0)->skc_ipv6only,
						   BPF_FIELD_LSHIFT_U64);
	__u32 right = __builtin_preserve_field_info(((struct sock_common *)0)->skc_ipv6only,
						    BPF_FIELD_RSHIFT_U64);
	__u64 value = 0;

	/* A socket pointer allows no arithmetic, so the field is cut out of a copy. */
	if (bpf_probe_read_kernel(common, sizeof(common), sk))
		return true;
	if (offset + size > sizeof(common) || size > sizeof(value))
		return true;
	for (__u32 i = 0; i < sizeof(value); i++) {
		if (i < size && offset + i < sizeof(common))
			value |= (__u64)common[offset + i] << (8 * i);
	}
	return value << left >> right;
}

static __always_inline void bound_address(struct nb_address *to, const struct nb_call *call,
					  struct bpf_sock *sk)
{
	if (call->ipv6) {
		to->words[0] = sk->src_ip6[0];
		to->words[1] = sk->src_ip6[1];
		to->words[2] = sk->src_ip6[2];
		to->words[3] = sk->src_ip6[3];
	} else {
		address_from_v4(to, sk->src_ip4);
	}
}

/* Served, or why this socket can't reach this target without a forwarder. */
static __always_inline enum nb_connect_result
check_socket(const struct nb_call *call, struct bpf_sock *sk, const struct nb_port *port)
{
	bool v4_target = address_is_v4(&port->address);
	struct nb_address bound;

	if (sk->bound_dev_if)
		return NB_CONNECT_BOUND;
	bound_address(&bound, call, sk);
	/* A packet from a loopback source never leaves the host. */
	if (is_loopback(&bound))
		return NB_CONNECT_BOUND;
	if (!call->ipv6)
		return v4_target ? NB_CONNECT_SERVED : NB_CONNECT_OTHER_FAMILY;
	if (!is_any(&bound) && address_is_v4(&bound) != v4_target)
		return NB_CONNECT_BOUND;
	/* A socket that spoke of v4-mapped addresses stays with them. */
	if (address_is_v4(&call->address))
		return v4_target ? NB_CONNECT_SERVED : NB_CONNECT_OTHER_FAMILY;
	if (!v4_target)
		return NB_CONNECT_SERVED;
	/* udpv6_sendmsg() refuses a v4-mapped address from the hook. */
	if (call->message)
		return NB_CONNECT_OTHER_FAMILY;
	return is_v6only(sk) ? NB_CONNECT_V6ONLY : NB_CONNECT_SERVED;
}

/* Served with *target set, or why not. call->address becomes what a wildcard stands for. */
static __always_inline enum nb_connect_result
find_target(struct bpf_sock_addr *ctx, struct nb_call *call, struct nb_port **target)
{
	__u32 first = 0;
	struct nb_config *config = bpf_map_lookup_elem(&switches, &first);
	struct nb_address asked;

	if (!config || !config->connect_enabled)
		return NB_CONNECT_DISABLED;
	if (bpf_get_netns_cookie(ctx) != config->netns_cookie)
		return NB_CONNECT_OTHER_NAMESPACE;
	if (call->protocol != IPPROTO_TCP && call->protocol != IPPROTO_UDP)
		return NB_CONNECT_PROTOCOL;
	if (is_any(&call->address))
		any_to_loopback(&call->address);
	asked = call->address;
	if (!is_loopback(&asked)) {
		__u32 *kind = bpf_map_lookup_elem(&local_addresses, &asked);

		call->direct = kind && *kind == NB_ADDRESS_TARGET;
		if (!kind || call->direct)
			return NB_CONNECT_NOT_LOCAL;
	}
	*target = find_port(&asked, call->port, call->protocol);
	if (!*target)
		return NB_CONNECT_NO_PORT;
	if (!verdict_stands(config, bpf_ktime_get_coarse_ns()))
		return NB_CONNECT_UNJUDGED;
	if (!ctx->sk)
		return NB_CONNECT_PROTOCOL;
	return check_socket(call, ctx->sk, *target);
}

static __always_inline void read_call4(struct nb_call *call, struct bpf_sock_addr *ctx)
{
	address_from_v4(&call->address, ctx->user_ip4);
	call->port = ctx->user_port;
	call->protocol = ctx->protocol;
	call->ipv6 = false;
}

static __always_inline void read_call6(struct nb_call *call, struct bpf_sock_addr *ctx)
{
	call->address.words[0] = ctx->user_ip6[0];
	call->address.words[1] = ctx->user_ip6[1];
	call->address.words[2] = ctx->user_ip6[2];
	call->address.words[3] = ctx->user_ip6[3];
	call->port = ctx->user_port;
	call->protocol = ctx->protocol;
	call->ipv6 = true;
}

static __always_inline void write_address(struct bpf_sock_addr *ctx, bool ipv6,
					  const struct nb_address *address, __u16 port)
{
	if (ipv6) {
		ctx->user_ip6[0] = address->words[0];
		ctx->user_ip6[1] = address->words[1];
		ctx->user_ip6[2] = address->words[2];
		ctx->user_ip6[3] = address->words[3];
	} else {
		ctx->user_ip4 = address->words[3];
	}
	ctx->user_port = port;
}

static __always_inline bool remember_peer(struct bpf_sock_addr *ctx, const struct nb_call *asked,
					  const struct nb_port *port)
{
	struct bpf_sock *sk = ctx->sk;
	struct nb_peer *peer;

	if (!sk)
		return false;
	peer = bpf_sk_storage_get(&peers, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!peer)
		return false;
	peer->asked = asked->address;
	peer->asked_port = asked->port;
	peer->target = port->address;
	peer->target_port = port->port;
	peer->port_id = port->port_id;
	peer->endpoint_id = port->endpoint_id;
	return true;
}

static __always_inline void forget_peer(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	if (sk)
		bpf_sk_storage_delete(&peers, sk);
}

static __always_inline int connect_call(struct bpf_sock_addr *ctx, struct nb_call *call)
{
	enum nb_connect_result result;
	struct nb_port *port = 0;

	result = find_target(ctx, call, &port);
	if (result == NB_CONNECT_SERVED && port) {
		if (remember_peer(ctx, call, port)) {
			write_address(ctx, call->ipv6, &port->address, port->port);
			count_port(port->slot);
			return count_call(NB_CONNECT_SERVED);
		}
		result = NB_CONNECT_NO_MEMORY;
	}
	/* A socket may connect again, elsewhere. */
	if (result != NB_CONNECT_OTHER_NAMESPACE)
		forget_peer(ctx);
	return count_call(result);
}

/* For UDP: disconnecting calls no hook, so what connecting noted may be of the past. */
static __always_inline struct nb_peer *connected_peer(struct bpf_sock *sk)
{
	if (sk->protocol == IPPROTO_UDP && sk->state != BPF_TCP_ESTABLISHED)
		return 0;
	return bpf_sk_storage_get(&peers, sk, 0, 0);
}

static __always_inline bool is_connected(struct bpf_sock *sk)
{
	return sk->state == BPF_TCP_ESTABLISHED;
}

/* Whether `asked` still leads to `target`. */
static __always_inline bool leads_to(const struct nb_place *asked, const struct nb_place *target)
{
	struct nb_port *port = find_port(&asked->address, asked->port, IPPROTO_UDP);

	return port && place_is(&port->address, port->port, target);
}

static __always_inline enum nb_connect_result
note_question(struct bpf_sock *sk, const struct nb_place *asked, const struct nb_place *target)
{
	struct nb_answers *known;
	struct nb_place clash = {};

	known = bpf_sk_storage_get(&answers, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!known)
		return NB_CONNECT_NO_MEMORY;
	for (int attempt = 0; attempt < 2; attempt++) {
		enum nb_noted noted = note_asked(known, asked, target, false, &clash);

		if (noted == NB_NOTED)
			return NB_CONNECT_SERVED;
		if (noted == NB_NOTED_FULL || leads_to(&clash, target) ||
		    place_is(&clash.address, clash.port, target))
			break;
		/* What led there once does no more. */
		drop_asked(known, &clash);
	}
	return NB_CONNECT_AMBIGUOUS;
}

/*
 * A question by the endpoint's own address: its answers must not be taken for those of a port. In
 * vain if there is no memory: answers are then taken for those of what was asked by a port before.
 */
static __always_inline void note_direct(struct bpf_sock *sk, const struct nb_place *target)
{
	struct nb_place clash = {};
	struct nb_answers *known = bpf_sk_storage_get(&answers, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);

	if (known && target->port)
		note_asked(known, target, target, true, &clash);
}

/* A connected socket hears its peer alone, whomever it sends to. */
static __always_inline enum nb_connect_result check_connected(struct bpf_sock *sk,
							      const struct nb_place *asked)
{
	struct nb_peer *peer = connected_peer(sk);

	if (peer && place_is(&peer->asked, peer->asked_port, asked))
		return NB_CONNECT_SERVED;
	return NB_CONNECT_CONNECTED;
}

static __always_inline int send_call(struct bpf_sock_addr *ctx, struct nb_call *call)
{
	struct nb_place asked = {.port = call->port};
	struct nb_place target = {};
	enum nb_connect_result result;
	struct bpf_sock *sk = ctx->sk;
	struct nb_port *port = 0;

	result = find_target(ctx, call, &port);
	if (!sk)
		return count_call(result);
	/* An answer to "any" comes from loopback, as it would without us. */
	asked.address = call->address;
	if (call->direct && !is_connected(sk))
		note_direct(sk, &asked);
	if (result != NB_CONNECT_SERVED || !port)
		return count_call(result);
	target.address = port->address;
	target.port = port->port;
	result =
	    is_connected(sk) ? check_connected(sk, &asked) : note_question(sk, &asked, &target);
	if (result != NB_CONNECT_SERVED)
		return count_call(result);
	write_address(ctx, call->ipv6, &target.address, target.port);
	count_port(port->slot);
	return count_call(NB_CONNECT_SERVED);
}

static __always_inline bool peer_asked(struct bpf_sock_addr *ctx, const struct nb_call *from)
{
	struct bpf_sock *sk = ctx->sk;
	struct nb_peer *peer;

	if (!sk)
		return false;
	peer = connected_peer(sk);
	if (!peer || peer->target_port != from->port ||
	    !address_equal(&peer->target, &from->address))
		return false;
	write_address(ctx, from->ipv6, &peer->asked, peer->asked_port);
	return true;
}

static __always_inline bool question_asked(struct bpf_sock_addr *ctx, const struct nb_call *call)
{
	struct bpf_sock *sk = ctx->sk;
	struct nb_place from = {.port = call->port};
	struct nb_place asked = {};
	struct nb_answers *known;

	if (!sk || is_connected(sk))
		return false;
	known = bpf_sk_storage_get(&answers, sk, 0, 0);
	if (!known)
		return false;
	from.address = call->address;
	/* Where the question would go elsewhere by now, who answers is a stranger. */
	if (!asked_of(known, &from, &asked) || !leads_to(&asked, &from))
		return false;
	write_address(ctx, call->ipv6, &asked.address, asked.port);
	return true;
}

static __always_inline int receive_call(struct bpf_sock_addr *ctx, const struct nb_call *from)
{
	if (question_asked(ctx, from) || peer_asked(ctx, from))
		return count_call(NB_CONNECT_ANSWER_MAPPED);
	return NB_ALLOW;
}

static __always_inline int name_call(struct bpf_sock_addr *ctx, const struct nb_call *peer)
{
	if (peer_asked(ctx, peer))
		return count_call(NB_CONNECT_PEER_MAPPED);
	return NB_ALLOW;
}

SEC("cgroup/connect4")
int nb_connect4(struct bpf_sock_addr *ctx)
{
	struct nb_call call = {};

	read_call4(&call, ctx);
	return connect_call(ctx, &call);
}

SEC("cgroup/connect6")
int nb_connect6(struct bpf_sock_addr *ctx)
{
	struct nb_call call = {};

	read_call6(&call, ctx);
	return connect_call(ctx, &call);
}

SEC("cgroup/sendmsg4")
int nb_sendmsg4(struct bpf_sock_addr *ctx)
{
	struct nb_call call = {.message = true};

	read_call4(&call, ctx);
	return send_call(ctx, &call);
}

SEC("cgroup/sendmsg6")
int nb_sendmsg6(struct bpf_sock_addr *ctx)
{
	struct nb_call call = {.message = true};

	read_call6(&call, ctx);
	return send_call(ctx, &call);
}

SEC("cgroup/recvmsg4")
int nb_recvmsg4(struct bpf_sock_addr *ctx)
{
	struct nb_call call = {};

	read_call4(&call, ctx);
	return receive_call(ctx, &call);
}

SEC("cgroup/recvmsg6")
int nb_recvmsg6(struct bpf_sock_addr *ctx)
{
	struct nb_call call = {};

	read_call6(&call, ctx);
	return receive_call(ctx, &call);
}

SEC("cgroup/getpeername4")
int nb_getpeername4(struct bpf_sock_addr *ctx)
{
	struct nb_call call = {};

	read_call4(&call, ctx);
	return name_call(ctx, &call);
}

SEC("cgroup/getpeername6")
int nb_getpeername6(struct bpf_sock_addr *ctx)
{
	struct nb_call call = {};

	read_call6(&call, ctx);
	return name_call(ctx, &call);
}
