/* SPDX-License-Identifier: GPL-2.0-only */
/* What lies behind an IPv6 header and its extension headers (RFC 8200). */
#ifndef NB_EXTENSION_H
#define NB_EXTENSION_H

#include <stdbool.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Extension headers in a row that are followed; RFC 8200 section 4.1 knows of no more. */
#define NB_EXTENSION_HEADERS 8
#define NB_FRAGMENT_OFFSET bpf_htons(0xfff8)

/* The beginning of a hop-by-hop, routing, destination options or fragment header. */
struct nb_extension {
	__u8 next;
	/* In units of 8 bytes, the first left out; a fragment header has none. */
	__u8 length;
	__be16 fragment_offset;
};

struct nb_payload {
	/* From the frame's beginning. */
	__u32 offset;
	__u8 protocol;
	/* There is a fragment header. */
	bool fragment;
	/* It is not the first fragment: what is there is no header. */
	bool later;
};

/*
 * Follows the headers to the payload. False if they don't end where they must. Their lengths vary,
 * so they are read by a helper, which checks bounds as the cursor does.
 */
static __always_inline bool find_payload(struct __sk_buff *skb, __u8 next,
					 struct nb_payload *payload)
{
	__u32 offset = sizeof(struct ethhdr) + sizeof(struct ipv6hdr);
	struct nb_extension extension;

	payload->fragment = false;
	payload->later = false;
	for (__u32 i = 0; i < NB_EXTENSION_HEADERS; i++) {
		payload->offset = offset;
		payload->protocol = next;
		if (payload->later || (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING &&
				       next != IPPROTO_DSTOPTS && next != IPPROTO_FRAGMENT))
			return true;
		if (bpf_skb_load_bytes(skb, offset, &extension, sizeof(extension)))
			return false;
		if (next == IPPROTO_FRAGMENT) {
			payload->fragment = true;
			payload->later = extension.fragment_offset & NB_FRAGMENT_OFFSET;
			offset += 8;
		} else {
			offset += (extension.length + 1) * 8;
		}
		next = extension.next;
	}
	return false;
}

#endif
