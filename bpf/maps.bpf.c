// SPDX-License-Identifier: GPL-2.0-only
#include "lib/maps.h"

struct nb_config_map switches SEC(".maps");
struct nb_devices_map devices SEC(".maps");
struct nb_device_copies_map device_copies SEC(".maps");
struct nb_device_counters_map device_counters SEC(".maps");
struct nb_flows_map flows SEC(".maps");
struct nb_presence_map presence SEC(".maps");
struct nb_notes_map notes SEC(".maps");
struct nb_sightings_map sightings SEC(".maps");
struct nb_scratch_map scratch SEC(".maps");
struct nb_requests_map requests SEC(".maps");
struct nb_events_map events SEC(".maps");
struct nb_ports_map ports SEC(".maps");
struct nb_port_connects_map port_connects SEC(".maps");
struct nb_local_addresses_map local_addresses SEC(".maps");
struct nb_link_locals_map link_locals SEC(".maps");
struct nb_connect_results_map connect_results SEC(".maps");
struct nb_peers_map peers SEC(".maps");
struct nb_answers_map answers SEC(".maps");

/* In the type information, so that the Rust side has them too. */
const enum nb_device_flag nb_device_flag_type = NB_DEVICE_ENDPOINT;
const enum nb_drop nb_drop_type = NB_DROP_COUNT;
const enum nb_event nb_event_type = NB_EVENT_COUNT;
const enum nb_connect_result nb_connect_result_type = NB_CONNECT_COUNT;
const struct nb_socket nb_socket_type = {};
const enum nb_request_kind nb_request_kind_type = NB_REQUEST_LIBERAL;
const struct nb_request nb_request_type = {};
const enum nb_abi nb_abi_type = NB_ABI;
const enum nb_address_kind nb_address_kind_type = NB_ADDRESS_LOCAL;

char _license[] SEC("license") = "GPL";
