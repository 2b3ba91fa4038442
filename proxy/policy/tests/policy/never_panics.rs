//! Whatever a control plane sends: it compiles, is judged, and both evaluators say the same about it.

use proptest::prelude::*;
use tollgate_policy::model::{HttpRule, PortRule, ValueMatch};

use crate::support::{World, header, range};

fn config() -> ProptestConfig {
    ProptestConfig { cases: crate::properties::cases(3_000), failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn patterns_and_ports(
        patterns in proptest::collection::vec("[a-c\\\\()\\[\\]{}*+?|^$.:\\-0-9QEdwsbPpix<>é]{0,12}", 1..6),
        names in proptest::collection::vec("[a*.]{0,6}", 0..3),
        port in 0..70000u32,
        end_port in 0..70000u32,
    ) {
        let matchers = patterns.iter().map(|p| header("x", ValueMatch::Regex(p.as_str().into()))).collect();
        let rule = PortRule {
            http: Some(vec![HttpRule { headers: matchers, ..HttpRule::default() }]),
            server_names: names,
            ..PortRule::default()
        };
        let world = World::ingress(vec![range(port, end_port, vec![rule])]);
        for value in ["", "a", "aa", "b]", "\u{e9}"] {
            world.with_header("x", value.as_bytes());
        }
        prop_assert!(world.quarantined().iter().all(|text| text.starts_with("7 ingress_per_port_policies[0]")));
    }
}

#[cfg(feature = "proto")]
mod messages {
    use prost::Message as _;
    use tollgate_policy::NetworkPolicy;
    use tollgate_proto::cilium;

    use super::*;
    use crate::generate::{Choices, Question, Response, difference, worlds};
    use crate::message;

    /// The policy in `bytes`, if they decode and say whose it is.
    fn decoded(bytes: &[u8]) -> Option<NetworkPolicy> {
        let policy = cilium::NetworkPolicy::decode(bytes).ok()?;
        NetworkPolicy::try_from(&policy).ok()
    }

    fn differs(policy: NetworkPolicy, asked: &[u8]) -> Option<String> {
        let (snapshot, reference) = worlds(&[Response::All(vec![policy])]);
        snapshot.quarantined().for_each(drop);
        let mut choices = Choices::new(asked);
        (0..4).find_map(|_| {
            let question = Question::choose(&mut choices);
            snapshot.explain(&question.flow, Some(&question.request()), &tollgate_policy::Secrets::default());
            difference(&snapshot, &reference, &question.flow, &question.request())
        })
    }

    proptest! {
        #![proptest_config(config())]

        #[test]
        fn any_message(
            bytes in proptest::collection::vec(any::<u8>(), 20..200),
            asked in proptest::collection::vec(any::<u8>(), 20..80),
        ) {
            let message = message::network_policy(&mut Choices::new(&bytes));
            if let Some(policy) = decoded(&message) {
                prop_assert_eq!(differs(policy, &asked), None);
            }
        }
    }

    /// Damage must leave most messages readable, or nothing would be tested.
    #[test]
    fn most_messages_decode() {
        let bytes: Vec<Vec<u8>> =
            (0..200u8).map(|n| (0..120u8).map(|i| i.wrapping_mul(n) ^ (n >> 3)).collect()).collect();
        let readable = bytes.iter().filter(|b| decoded(&message::network_policy(&mut Choices::new(b))).is_some());
        assert!(readable.count() > 100);
    }
}
