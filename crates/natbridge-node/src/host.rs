//! Conversions for `natbridge_datapath`: host.
