use proptest::prelude::*;

use super::*;
use crate::config::Underscores;

const CILIUM: Normalize = Normalize {
    path: true,
    merge_slashes: true,
    escaped_slashes: EscapedSlashes::UnescapeAndRedirect,
    field_underscores: Underscores::Keep,
};
const FORWARD: Normalize = Normalize { escaped_slashes: EscapedSlashes::UnescapeAndForward, ..CILIUM };
const OFF: Normalize = Normalize {
    path: false,
    merge_slashes: false,
    escaped_slashes: EscapedSlashes::Keep,
    field_underscores: Underscores::Keep,
};

fn shown(target: &str, mode: &Normalize) -> String {
    match canonicalise(target.as_bytes(), mode) {
        Ok(CanonicalPath::Unchanged) => format!("= {target}"),
        Ok(CanonicalPath::Rewritten(path)) => format!("> {}", String::from_utf8(path).unwrap()),
        Ok(CanonicalPath::Redirect(path)) => format!("307 {}", String::from_utf8(path).unwrap()),
        Err(error) => format!("! {error:?}"),
    }
}

/// Rows 69–84 of the bad-input matrix, and the neighbours of each.
#[test]
fn matrix() {
    for (target, expected) in [
        ("/", "= /"),
        ("/hello", "= /hello"),
        ("/hello?x=/../%2e#", "! Fragment"),
        ("/hello?x=/../%2e//", "= /hello?x=/../%2e//"),
        ("/public/../admin", "> /admin"),
        ("/public/%2e%2e/admin", "> /admin"),
        ("/public/.%2E/admin", "> /admin"),
        ("/public/..%2fadmin", "307 /admin"),
        ("/public/..%5cadmin", "307 /admin"),
        ("/a%2Fb?q=%2F", "307 /a/b?q=%2F"),
        ("//admin", "> /admin"),
        ("/public//admin", "> /public/admin"),
        ("/a///", "> /a/"),
        ("/public\\..\\admin", "> /admin"),
        ("/a/..;/b", "> /b"),
        ("/..;x/y", "> /y"),
        ("/a/.;/b", "> /a/b"),
        ("/a/%2E%2e;/b", "> /b"),
        ("/a/..", "> /"),
        ("/a/b/..", "> /a/"),
        ("/a/.", "> /a/"),
        ("/a/..;", "> /"),
        ("/public#/../admin", "! Fragment"),
        ("/public?/../admin", "= /public?/../admin"),
        ("/public/%252e%252e/admin", "= /public/%252e%252e/admin"),
        ("/public/%c0%ae%c0%ae/admin", "! NotUtf8"),
        ("/%ff", "! NotUtf8"),
        ("/%C3%A9", "= /%C3%A9"),
        ("/public%00/admin", "! EscapedNul"),
        ("/a%zz", "! BrokenEscape"),
        ("/a%", "! BrokenEscape"),
        ("/a%2%65", "! BrokenEscape"),
        ("/%61dmin", "> /admin"),
        ("/../../admin", "> /admin"),
        ("/a%0d%0aX:1", "= /a%0d%0aX:1"),
        ("/admin;x", "= /admin;x"),
        ("/.hidden", "= /.hidden"),
        ("/...", "= /..."),
        ("/a{b}|c^\"<>`", "> /a%7Bb%7D%7Cc%5E%22%3C%3E%60"),
        ("admin", "! NotAbsolute"),
        ("/a b", "! ForbiddenByte(32)"),
        ("/a?b c", "! ForbiddenByte(32)"),
        ("/é", "! ForbiddenByte(195)"),
        ("/a\u{7f}", "! ForbiddenByte(127)"),
    ] {
        assert_eq!(shown(target, &CILIUM), expected, "{target}");
    }
}

#[test]
fn modes() {
    assert_eq!(shown("/a%2f..%2Fb//c", &FORWARD), "> /b/c");
    assert_eq!(shown("/a%2fb", &Normalize { escaped_slashes: EscapedSlashes::Reject, ..CILIUM }), "! EscapedSlash");
    assert_eq!(shown("/a%2fb//c/../d", &OFF), "= /a%2fb//c/../d");
    assert_eq!(shown("/a%zz", &OFF), "= /a%zz");
    let unmerged = Normalize { merge_slashes: false, ..CILIUM };
    assert_eq!(shown("/%2Fevil.example", &unmerged), "! EscapedSlash");
    assert_eq!(shown("/a%2F/b", &unmerged), "307 /a//b");
    assert_eq!(shown("/a#b", &OFF), "! Fragment");
    assert_eq!(shown("/a\r\nb", &OFF), "! ForbiddenByte(13)");
}

proptest! {
    /// A second hop sees the same path, whatever the first one made of it.
    #[test]
    fn idempotent(parts in prop::collection::vec("(/|//|\\.|\\.\\.|;|%2e|%2E|%2f|%5C|%61|%25|%c3%a9|\\\\|a|\\{|\\?|=){1}", 0..24)) {
        let target = format!("/{}", parts.concat());
        for mode in [CILIUM, FORWARD] {
            if let Ok(CanonicalPath::Rewritten(once) | CanonicalPath::Redirect(once)) =
                canonicalise(target.as_bytes(), &mode)
            {
                prop_assert_eq!(canonicalise(&once, &mode), Ok(CanonicalPath::Unchanged), "{}", target);
            }
        }
    }

    /// No input panics, and what comes out has no dot segment and no double slash.
    #[test]
    fn canonical_means_canonical(target in prop::collection::vec(any::<u8>(), 0..64)) {
        let mut target = target;
        target.insert(0, b'/');
        let path = match canonicalise(&target, &CILIUM) {
            Ok(CanonicalPath::Unchanged) => target.clone(),
            Ok(CanonicalPath::Rewritten(path) | CanonicalPath::Redirect(path)) => path,
            Err(_) => return Ok(()),
        };
        let path = &path[..memchr::memchr(b'?', &path).unwrap_or(path.len())];
        prop_assert!(!path.windows(2).any(|pair| pair == b"//"));
        for segment in path.split(|&b| b == b'/') {
            let name = segment.split(|&b| b == b';').next().unwrap();
            prop_assert!(name != b"." && name != b"..", "{:?}", String::from_utf8_lossy(path));
        }
    }
}
