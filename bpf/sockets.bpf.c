// SPDX-License-Identifier: GPL-2.0-only
/*
 * Lists the sockets that the connect hooks have sent somewhere, by what they keep in the sockets'
 * storage: its cost is their number, whatever else the host has open. An object of its own: a
 * kernel that refuses it loses the connect hooks, and nothing more.
 */
#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "lib/address.h"
#include "lib/maps.h"

#define NB_AF_INET6 10

struct nb_peers_map peers SEC(".maps");

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct net {
	__u64 net_cookie;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct nb_in6_words {
	__u32 words[4];
};

struct sock_common {
	__u32 skc_daddr;
	__u32 skc_rcv_saddr;
	__u16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	int skc_bound_dev_if;
	possible_net_t skc_net;
	struct nb_in6_words skc_v6_daddr;
	struct nb_in6_words skc_v6_rcv_saddr;
};

struct inode {
	unsigned long i_ino;
};

struct socket_alloc {
	struct inode vfs_inode;
};

struct socket {
	int type;
};

struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
	struct socket *sk_socket;
};

struct seq_file {
	void *private;
};

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_iter__bpf_sk_storage_map {
	struct bpf_iter_meta *meta;
	struct sock *sk;
	void *value;
};

#pragma clang attribute pop

SEC("iter/bpf_sk_storage_map")
int nb_sockets(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct nb_peer *peer = ctx->value;
	struct sock *sk = ctx->sk;
	struct nb_socket found = {};
	struct socket_alloc *file;

	if (!sk || !peer)
		return 0;
	found.cookie = bpf_get_socket_cookie(sk);
	found.netns_cookie = BPF_CORE_READ(sk, __sk_common.skc_net.net, net_cookie);
	file = (struct socket_alloc *)BPF_CORE_READ(sk, sk_socket);
	if (file)
		found.inode = BPF_CORE_READ(file, vfs_inode.i_ino);
	found.family = BPF_CORE_READ(sk, __sk_common.skc_family);
	found.protocol = BPF_CORE_READ(sk, sk_protocol);
	found.state = BPF_CORE_READ(sk, __sk_common.skc_state);
	found.bound_device = BPF_CORE_READ(sk, __sk_common.skc_bound_dev_if);
	found.local_port = bpf_htons(BPF_CORE_READ(sk, __sk_common.skc_num));
	found.remote_port = BPF_CORE_READ(sk, __sk_common.skc_dport);
	if (found.family == NB_AF_INET6) {
		BPF_CORE_READ_INTO(&found.local, sk, __sk_common.skc_v6_rcv_saddr);
		BPF_CORE_READ_INTO(&found.remote, sk, __sk_common.skc_v6_daddr);
	} else {
		address_from_v4(&found.local, BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr));
		address_from_v4(&found.remote, BPF_CORE_READ(sk, __sk_common.skc_daddr));
	}
	found.peer = *peer;
	bpf_seq_write(ctx->meta->seq, &found, sizeof(found));
	return 0;
}

char _license[] SEC("license") = "GPL";
