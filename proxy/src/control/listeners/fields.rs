//! What becomes of each field that an agent's listener may have: read here, without effect, or in the way. A field that is in
//! none of the lists, of a version to come, is in the way: it could be what decides who is asked, or what is forwarded.
//!
//! Whether a field is there is told by the bytes: proto3 writes no field that has its default, and decoding drops what it does
//! not know. Numbers and names are those of Envoy's and Cilium's `.proto` files.

use prost::Message;
use tollgate_proto::envoy::config::listener::v3::Listener;
use tollgate_proto::unread;

use super::convert::Inactive;

/// Number and name of a field.
type Named = (u32, &'static str);

/// The fields of one message.
pub(super) struct Fields {
    /// By number.
    read: &'static [u32],
    without_effect: &'static [Named],
    refused: &'static [Named],
}

impl Fields {
    /// Goes through the fields in `bytes`, which are a message at `place`. Names those without effect.
    ///
    /// # Errors
    /// One is in the way.
    pub(super) fn account(&self, place: &str, bytes: &[u8], ignored: &mut Vec<String>) -> Result<(), Inactive> {
        let at = |name: &str| if place.is_empty() { name.to_owned() } else { format!("{place}.{name}") };
        let named = |list: &[Named], number| list.iter().find(|(known, _)| *known == number).map(|(_, name)| at(name));
        for number in unread::numbers(bytes) {
            if self.read.contains(&number) {
                continue;
            }
            if let Some(field) = named(self.without_effect, number) {
                ignored.push(field);
                continue;
            }
            return Err(match named(self.refused, number) {
                Some(field) => Inactive::new(field, "is not implemented"),
                None => unknown(at(&format!("field {number}"))),
            });
        }
        Ok(())
    }

    /// The same of a message that has been decoded with all that is in it.
    pub(super) fn of(&self, place: &str, message: &impl Message, ignored: &mut Vec<String>) -> Result<(), Inactive> {
        self.account(place, &message.encode_to_vec(), ignored)
    }
}

/// Why a message at `place` with these bytes was not understood as a whole, if it was not.
///
/// # Errors
/// There is more in it.
pub(super) fn understood(place: &str, bytes: &[u8], message: &impl Message) -> Result<(), Inactive> {
    understood_but(place, bytes, message, &[])
}

/// The same of a listener. What stands in its metadata, or in those of its chains, has no effect.
pub(super) fn listener_understood(bytes: &[u8], listener: &Listener) -> Result<(), Inactive> {
    understood_but("", bytes, listener, &[&[6], &[3, 5], &[25, 5]])
}

fn understood_but(place: &str, bytes: &[u8], message: &impl Message, passed_over: &[&[u32]]) -> Result<(), Inactive> {
    match unread::beyond(bytes, &message.encode_to_vec(), passed_over) {
        Some(field) if place.is_empty() => Err(unknown(field)),
        Some(field) => Err(unknown(format!("{place}.{field}"))),
        None => Ok(()),
    }
}

fn unknown(field: String) -> Inactive {
    Inactive::new(field, "this version does not know the field, and it could matter")
}

/// `envoy.config.listener.v3.Listener`.
pub(super) const LISTENER: Fields = Fields {
    read: &[1, 2, 3, 9, 26, 29, 33],
    without_effect: &[
        (5, "per_connection_buffer_limit_bytes"),
        (6, "metadata"),
        (8, "drain_type"),
        // Every socket of an agent's listener is.
        (10, "transparent"),
        (12, "tcp_fast_open_queue_length"),
        (15, "listener_filters_timeout"),
        (16, "traffic_direction"),
        (17, "continue_on_listener_filters_timeout"),
        (20, "connection_balance_config"),
        (21, "reuse_port"),
        (22, "access_log"),
        (24, "tcp_backlog_size"),
        (28, "stat_prefix"),
        (30, "enable_mptcp"),
        (31, "ignore_global_conn_limit"),
        (34, "max_connections_to_accept_per_socket_event"),
        (35, "bypass_overload_manager"),
        (37, "tcp_keepalive"),
        (38, "per_connection_buffer_high_watermark_timeout"),
        (39, "stats_matcher"),
    ],
    refused: &[
        (4, "use_original_dst"),
        (7, "deprecated_v1"),
        (11, "freebind"),
        (13, "socket_options"),
        (18, "udp_listener_config"),
        (19, "api_listener"),
        (25, "default_filter_chain"),
        (27, "listener_specifier"),
        (32, "filter_chain_matcher"),
        (36, "fcds_config"),
    ],
};

/// `envoy.config.listener.v3.AdditionalAddress`.
pub(super) const ADDITIONAL_ADDRESS: Fields =
    Fields { read: &[1], without_effect: &[(3, "tcp_keepalive")], refused: &[(2, "socket_options")] };

/// `envoy.config.core.v3.SocketAddress`.
pub(super) const SOCKET_ADDRESS: Fields = Fields {
    read: &[1, 2, 3, 4],
    without_effect: &[],
    refused: &[(5, "resolver_name"), (6, "ipv4_compat"), (7, "network_namespace_filepath")],
};

/// `envoy.config.listener.v3.ListenerFilter`.
pub(super) const LISTENER_FILTER: Fields =
    Fields { read: &[1, 3], without_effect: &[], refused: &[(4, "filter_disabled"), (5, "config_discovery")] };

/// `envoy.config.listener.v3.FilterChain`, the one that is served.
pub(super) const FILTER_CHAIN: Fields = Fields {
    read: &[1, 3, 6, 7],
    without_effect: &[(5, "metadata"), (9, "transport_socket_connect_timeout")],
    refused: &[(4, "use_proxy_proto")],
};

/// `envoy.config.listener.v3.Filter`.
pub(super) const FILTER: Fields = Fields { read: &[1, 4], without_effect: &[], refused: &[(5, "config_discovery")] };

/// `cilium.BpfMetadata` (`spec/cilium-filter.md` section 2.4).
pub(super) const BPF_METADATA: Fields = Fields {
    read: &[1, 2, 3, 4, 8, 11, 12, 13, 14],
    without_effect: &[
        (9, "policy_update_warning_limit"),
        (15, "cache_gc_interval"),
        // There is one control plane.
        (16, "cilium_config_source"),
    ],
    refused: &[
        (5, "ipv4_source_address"),
        (6, "ipv6_source_address"),
        (7, "enforce_policy_on_l7lb"),
        (10, "l7lb_policy_name"),
    ],
};

/// `cilium.NetworkFilter`. Parameters are for a parser, which is not served.
pub(super) const NETWORK_FILTER: Fields =
    Fields { read: &[1, 5], without_effect: &[(2, "proxylib_params")], refused: &[] };

/// `cilium.L7Policy`.
pub(super) const L7_POLICY: Fields = Fields { read: &[1, 3], without_effect: &[], refused: &[] };

/// `envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy`.
pub(super) const TCP_PROXY: Fields = Fields {
    read: &[1, 2, 8, 10],
    without_effect: &[
        (3, "downstream_idle_timeout"),
        (4, "upstream_idle_timeout"),
        (5, "access_log"),
        (7, "max_connect_attempts"),
        (13, "max_downstream_connection_duration"),
        (15, "access_log_flush_interval"),
        (16, "flush_access_log_on_connected"),
        (17, "access_log_options"),
        (18, "backoff_options"),
        (20, "max_downstream_connection_duration_jitter_percentage"),
        (24, "check_drain_close"),
    ],
    refused: &[
        (9, "metadata_match"),
        (11, "hash_policy"),
        (12, "tunneling_config"),
        (14, "on_demand"),
        (19, "proxy_protocol_tlvs"),
        (21, "upstream_connect_mode"),
        (22, "max_early_data_bytes"),
        (23, "proxy_protocol_tlv_merge_policy"),
    ],
};

/// `envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager`.
pub(super) const HTTP_MANAGER: Fields = Fields {
    read: &[2, 3, 4, 5, 8, 14, 15, 19, 21, 23, 24, 30, 31, 33, 35, 45],
    without_effect: &[
        // Which HTTP it is, the first bytes say.
        (1, "codec_type"),
        (7, "tracing"),
        (9, "http2_protocol_options"),
        (10, "server_name"),
        (12, "drain_timeout"),
        (13, "access_log"),
        // 100-continue passes through.
        (18, "proxy_100_continue"),
        (20, "represent_ipv4_remote_address_as_ipv4_mapped_ipv6"),
        (25, "internal_address_config"),
        (26, "delayed_close_timeout"),
        (28, "request_timeout"),
        (29, "max_request_headers_kb"),
        // A client's is kept in any case.
        (32, "preserve_external_request_id"),
        (34, "server_header_transformation"),
        (37, "always_set_request_id_in_response"),
        (38, "local_reply_config"),
        (40, "stream_error_on_invalid_http_message"),
        (41, "request_headers_timeout"),
        (44, "http3_protocol_options"),
        (49, "proxy_status_config"),
        (54, "access_log_flush_interval"),
        (55, "flush_access_log_on_new_request"),
        (56, "access_log_options"),
        (57, "append_local_overload"),
        (58, "http1_safe_max_connection_duration"),
        (59, "stream_flush_timeout"),
        (62, "drain_timeout_jitter"),
    ],
    refused: &[
        (6, "add_user_agent"),
        (16, "forward_client_cert_details"),
        (17, "set_current_client_cert_details"),
        (22, "via"),
        (36, "request_id_extension"),
        (39, "strip_matching_host_port"),
        (42, "strip_port_mode"),
        (43, "path_normalization_options"),
        (46, "original_ip_detection_extensions"),
        (47, "strip_trailing_host_dot"),
        (48, "scheme_header_transformation"),
        (50, "typed_header_validation_config"),
        (51, "append_x_forwarded_port"),
        (52, "early_header_mutation_extensions"),
        (53, "add_proxy_protocol_connection_state"),
        (60, "forward_client_cert_matcher"),
        (61, "forward_proto_config"),
    ],
};

/// `envoy.config.core.v3.HttpProtocolOptions`, of the client's side.
pub(super) const COMMON_HTTP_OPTIONS: Fields = Fields {
    read: &[4, 5, 6],
    without_effect: &[
        (1, "idle_timeout"),
        (2, "max_headers_count"),
        (3, "max_connection_duration"),
        (7, "max_response_headers_kb"),
        (8, "max_connection_duration_jitter"),
    ],
    refused: &[],
};

/// `envoy.config.core.v3.Http1ProtocolOptions`, of the client's side. What it would let in besides stays out.
pub(super) const HTTP1_OPTIONS: Fields = Fields {
    read: &[2],
    without_effect: &[
        (1, "allow_absolute_url"),
        (4, "header_key_format"),
        (5, "enable_trailers"),
        (6, "allow_chunked_length"),
        (7, "override_stream_error_on_invalid_http_message"),
        (8, "send_fully_qualified_url"),
        (9, "use_balsa_parser"),
        (10, "allow_custom_methods"),
        (11, "ignore_http_11_upgrade"),
    ],
    refused: &[(3, "default_host_for_http_10")],
};

/// `envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter`.
pub(super) const HTTP_FILTER: Fields =
    Fields { read: &[1, 4, 6, 7], without_effect: &[], refused: &[(5, "config_discovery")] };

/// `envoy.extensions.filters.http.router.v3.Router`. Nothing of Envoy's own is ever added to a message.
pub(super) const ROUTER: Fields = Fields {
    read: &[4],
    without_effect: &[
        (1, "dynamic_stats"),
        (2, "start_child_span"),
        (3, "upstream_log"),
        (7, "suppress_grpc_request_failure_code_stats"),
        (9, "upstream_log_options"),
    ],
    refused: &[
        (5, "strict_check_headers"),
        (6, "respect_expected_rq_timeout"),
        (8, "upstream_http_filters"),
        (10, "reject_connect_request_early_data"),
    ],
};
