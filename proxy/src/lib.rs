//! Tollgate: a node-local L7 policy proxy.
