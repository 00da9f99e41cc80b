//! Conversions for `natbridge_datapath`: fastpath.
