//! Conversions for `natbridge_datapath`: firewall.
