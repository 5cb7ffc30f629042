//! Tests of the server: lanes in this process, and real clients.

mod lane_nbd;
