//! Generic xDS client: streams, subscriptions, versions, ACK/NACK, backoff; knows no policy.
