use super::*;

const TYPE: &str = "type.test/Item";

#[derive(Clone, PartialEq, Message)]
struct Item {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    text: String,
}

fn item(name: &str, text: &str) -> Bytes {
    Item { name: name.into(), text: text.into() }.encode_to_vec().into()
}

fn plain(name: &str, text: &str) -> RawAny {
    RawAny { type_url: TYPE.into(), value: item(name, text) }
}

fn wrapped(outer: &str, name: &str, text: &str) -> RawAny {
    let wrapper = RawResource { name: outer.into(), resource: Some(plain(name, text)) };
    RawAny {
        type_url: "type.googleapis.com/envoy.service.discovery.v3.Resource".into(),
        value: wrapper.encode_to_vec().into(),
    }
}

fn resource(name: &str, text: &str) -> RawResource {
    RawResource { name: name.into(), resource: Some(plain(name, text)) }
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// `+name=text` for each change, `-name` for each removal, in order.
fn summary(difference: &Difference<Item>) -> String {
    let changed = difference.changed.iter().map(|item| format!("+{}={}", item.name, item.message.text));
    let mut parts: Vec<String> = changed.chain(difference.removed.iter().map(|name| format!("-{name}"))).collect();
    parts.sort();
    parts.join(" ")
}

impl Accepted {
    /// Accepts a state and says what it changed.
    fn state(&mut self, resources: &[RawAny], wanted: Wanted<'_>) -> String {
        let difference = self.differs_from_state(TYPE, resources, wanted, |item: &Item| item.name.clone()).unwrap();
        let summary = summary(&difference);
        self.apply(difference.into_parts().2);
        summary
    }

    fn increment(&mut self, resources: &[RawResource], removed: &[&str], replaces_all: bool) -> String {
        let removed: Vec<_> = removed.iter().map(|&name| name.to_owned()).collect();
        let difference = self.differs_by_increment(TYPE, resources.to_vec(), &removed, replaces_all, None).unwrap();
        let summary = summary(&difference);
        self.apply(difference.into_parts().2);
        summary
    }
}

#[test]
fn a_state_differs_by_what_is_new_changed_or_absent() {
    let mut accepted = Accepted::default();
    assert_eq!(accepted.state(&[plain("a", "1"), plain("b", "1")], None), "+a=1 +b=1");
    assert_eq!(accepted.state(&[plain("b", "1"), plain("a", "1")], None), "", "order means nothing");
    assert_eq!(accepted.state(&[plain("c", "1"), plain("a", "2")], None), "+a=2 +c=1 -b");
    assert_eq!(accepted.state(&[], None), "-a -c");
    assert_eq!(accepted.len(), 0);
    assert_eq!(accepted.state(&[plain("a", "2")], None), "+a=2", "what is gone is forgotten");
}

#[test]
fn what_is_not_accepted_is_not_remembered() {
    let mut accepted = Accepted::default();
    accepted.state(&[plain("a", "1")], None);
    let refused = accepted.differs_from_state(TYPE, &[plain("a", "2")], None, |item: &Item| item.name.clone());
    drop(refused.unwrap());
    assert_eq!(accepted.state(&[plain("a", "1")], None), "");
    assert_eq!(accepted.state(&[plain("a", "2")], None), "+a=2");
}

#[test]
fn resources_of_one_name_all_have_their_effect() {
    let mut accepted = Accepted::default();
    let twice = [plain("a", "1"), plain("a", "2"), plain("a", "1")];
    assert_eq!(accepted.state(&twice, None), "+a (2)=2 +a=1", "a copy says nothing");
    assert_eq!(accepted.state(&[plain("a", "2"), plain("a", "1")], None), "", "names stay");
    assert_eq!(accepted.state(&[plain("a", "2"), plain("a", "3")], None), "+a=3");
    assert_eq!(accepted.state(&[plain("a", "2")], None), "-a");
    assert_eq!(accepted.state(&[plain("a", "9")], None), "+a=9 -a (2)");
}

#[test]
fn thousands_of_resources_of_one_name_are_no_burden() {
    let many: Vec<_> = (0..20_000).map(|n: u32| plain("a", &n.to_string())).collect();
    let mut accepted = Accepted::default();
    accepted.state(&many, None);
    assert_eq!(accepted.len(), 20_000);
    assert_eq!(accepted.state(&many, None), "");
}

#[test]
fn a_wrapped_resource_has_the_name_of_its_wrapper() {
    let mut accepted = Accepted::default();
    assert_eq!(accepted.state(&[wrapped("w", "a", "1")], None), "+w=1");
    assert_eq!(accepted.state(&[wrapped("w", "a", "1")], None), "");
    assert_eq!(accepted.state(&[wrapped("v", "a", "1")], None), "+v=1 -w", "the same bytes under another name");
    assert_eq!(accepted.state(&[wrapped("v", "a", "2")], None), "+v=2");
    assert_eq!(accepted.state(&[plain("a", "2")], None), "", "what has no name is told by its bytes");
}

#[test]
fn what_was_not_asked_for_is_ignored() {
    let mut accepted = Accepted::default();
    let (a, both) = (names(&["a"]), names(&["a", "b"]));
    assert_eq!(accepted.state(&[plain("a", "1"), plain("b", "1")], Some(&a)), "+a=1");
    assert_eq!(accepted.state(&[plain("a", "1"), plain("b", "1")], Some(&both)), "+b=1");
    assert_eq!(accepted.state(&[plain("a", "1"), plain("b", "1")], Some(&a)), "-b");
    assert_eq!(accepted.state(&[plain("a", "1"), plain("b", "1")], Some(&both)), "+b=1");
    let less = accepted.without_unwanted(&a);
    assert_eq!(summary(&less), "-b");
    accepted.apply(less.into_parts().2);
    assert!(accepted.without_unwanted::<Item>(&a).is_none());
}

#[test]
fn an_increment_changes_only_what_it_names() {
    let mut accepted = Accepted::default();
    assert_eq!(accepted.increment(&[resource("a", "1"), resource("b", "1")], &[], false), "+a=1 +b=1");
    assert_eq!(accepted.increment(&[resource("a", "1"), resource("b", "2")], &[], false), "+b=2");
    assert_eq!(accepted.increment(&[], &["a", "a", "never known"], false), "-a");
    assert_eq!(accepted.increment(&[resource("b", "3")], &["b"], false), "+b=3", "removals come first");
    assert_eq!(accepted.increment(&[resource("b", "3")], &["b"], false), "", "gone and back is no change");
    assert_eq!(
        accepted.increment(&[resource("b", "4"), resource("b", "5")], &[], false),
        "+b=5",
        "the last one counts"
    );
    assert_eq!(accepted.increment(&[resource("b", "6"), resource("b", "5")], &[], false), "");
}

#[test]
fn an_increment_that_replaces_all_leaves_nothing_else() {
    let mut accepted = Accepted::default();
    accepted.increment(&[resource("a", "1"), resource("b", "1")], &[], true);
    assert_eq!(accepted.increment(&[resource("b", "1"), resource("c", "1")], &[], true), "+c=1 -a");
    assert_eq!(accepted.increment(&[], &[], true), "-b -c");
}

#[test]
fn a_heartbeat_is_no_change() {
    let heartbeat = RawResource { name: "a".into(), resource: None };
    let mut accepted = Accepted::default();
    accepted.increment(&[resource("a", "1")], &[], true);
    assert_eq!(accepted.increment(std::slice::from_ref(&heartbeat), &[], false), "");
    let unknown = RawResource { name: "b".into(), resource: None };
    let refused = accepted.differs_by_increment::<Item>(TYPE, vec![heartbeat, unknown], &[], false, None);
    assert_eq!(refused.unwrap_err().to_string(), "resource 1 of 2 (\"b\"): holds no resource, wanted type.test/Item");
}

#[test]
fn a_change_of_the_protocol_is_no_change() {
    let mut accepted = Accepted::default();
    accepted.state(&[plain("a", "1"), plain("b", "1")], None);
    assert_eq!(accepted.increment(&[resource("a", "1"), resource("b", "1")], &[], true), "");
    assert_eq!(accepted.state(&[plain("a", "1"), plain("b", "1")], None), "");
}

#[test]
fn equal_bytes_under_two_names_are_two_resources_until_a_state_cannot_tell_them_apart() {
    let mut accepted = Accepted::default();
    let same = |name: &str| RawResource { name: name.into(), resource: Some(plain("x", "1")) };
    assert_eq!(accepted.increment(&[same("a"), same("b")], &[], true), "+a=1 +b=1");
    assert_eq!(accepted.increment(&[], &["b"], false), "-b");
    assert_eq!(accepted.state(&[plain("x", "1")], None), "+x=1 -a");
    assert_eq!(accepted.state(&[plain("x", "1")], None), "");
}

#[test]
fn known_bytes_of_another_type_are_refused() {
    let mut accepted = Accepted::default();
    accepted.state(&[plain("a", "1")], None);
    let other = RawAny { type_url: "type.test/Other".into(), value: item("a", "1") };
    let refused =
        accepted.differs_from_state(TYPE, std::slice::from_ref(&other), None, |item: &Item| item.name.clone());
    assert_eq!(
        refused.unwrap_err().to_string(),
        "resource 0 of 1 (type.test/Other): wrong type, wanted type.test/Item"
    );
    let other = RawResource { name: "a".into(), resource: Some(other) };
    let refused = accepted.differs_by_increment::<Item>(TYPE, vec![other], &[], false, None);
    assert_eq!(
        refused.unwrap_err().to_string(),
        "resource 0 of 1 (\"a\"): \"a\" is a type.test/Other, wanted type.test/Item"
    );
}
