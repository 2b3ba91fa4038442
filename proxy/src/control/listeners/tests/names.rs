//! What listeners are called, and what is beside the name.

use super::*;

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
