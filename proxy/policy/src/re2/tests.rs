use super::*;

#[test]
fn literals_need_no_automaton() {
    let literals = |pattern| match parse(pattern) {
        Ok(Pattern::Literals(literals)) => {
            let mut texts: Vec<String> = literals.iter().map(|l| String::from_utf8_lossy(l).into_owned()).collect();
            texts.sort();
            texts
        }
        other => panic!("{pattern}: {other:?}"),
    };
    assert_eq!(literals("GET"), ["GET"]);
    assert_eq!(literals("(GET)"), ["GET"]);
    assert_eq!(literals(r"\/a\.b\Q*\E"), ["/a.b*"]);
    assert_eq!(literals("GET|HEAD|POST"), ["GET", "HEAD", "POST"]);
    assert_eq!(literals("/v[12]/x"), ["/v1/x", "/v2/x"]);
    assert!(matches!(parse("^GET$"), Ok(Pattern::Expression(_))));
    assert!(matches!(parse("/a.*"), Ok(Pattern::Expression(_))));
}
