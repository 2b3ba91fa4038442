//! What listeners are called, and what is beside the name.

use super::*;

fn called(resource: &str, message: Listener) -> Resource<Listener> {
    Resource { name: resource.into(), message, partly_read: None }
}

/// As copies arrive on a stream without names of resources, or as one with names has them.
#[tokio::test]
async fn of_two_listeners_with_one_name_one_is_served_and_the_other_listed() {
    let (asked, report) = (Arc::new(Asked::default()), Report::default());
    let mut handler = ListenerHandler::new(Arc::clone(&asked), report.clone(), DEFAULTS);
    let other = || Listener { address: Some(address("127.0.0.1", 9999)), ..named("l") };
    let mut push = update(vec![], &[]);
    push.changed = vec![called("a", other()), called("l", named("l")), called("l (2)", other())];
    for update in [push, update(vec![], &[])] {
        assert_eq!(handler.apply(update).await, Ok(()));
        assert_eq!(asked.0.lock().unwrap().last().unwrap(), &["l"], "also when nothing changes");
        let inactive = report.read().inactive;
        assert_eq!(inactive.keys().collect::<Vec<_>>(), ["a", "l (2)"]);
        for inactivity in inactive.values() {
            assert_eq!(inactivity.reason, "name: l is the name of another listener, which is served");
        }
    }
    // What cannot be served is in nobody's way.
    let mut odd = update(vec![], &["a"]);
    odd.changed = vec![called("l", Listener { listener_filters: Vec::new(), ..named("l") })];
    assert_eq!(handler.apply(odd).await, Ok(()));
    assert_eq!(asked.0.lock().unwrap().last().unwrap(), &["l"]);
    assert_eq!(report.read().inactive.keys().collect::<Vec<_>>(), ["l"]);
}

#[tokio::test]
async fn empty_metadata_is_no_reason() {
    let (asked, report) = (Arc::new(Asked::default()), Report::default());
    let mut handler = ListenerHandler::new(Arc::clone(&asked), report.clone(), DEFAULTS);
    // metadata.filter_metadata["x"] = {}
    let bytes = [&named("l").encode_to_vec()[..], &[0x32, 7, 0x0a, 5, 0x0a, 1, b'x', 0x12, 0]].concat();
    let mut push = update(vec![Listener::decode(&bytes[..]).unwrap()], &[]);
    push.changed[0].partly_read = Some(bytes.into());
    assert_eq!(handler.apply(push).await, Ok(()));
    assert_eq!(asked.0.lock().unwrap().last().unwrap(), &["l"], "{:?}", report.read());
}
