use std::io;

use super::*;

fn files(path: &Path) -> io::Result<String> {
    match path.to_str() {
        Some("/level") => Ok("debug\n".into()),
        Some("/flag") => Ok("--concurrency 3\n".into()),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

fn read(arguments: &[&str]) -> Result<Run, String> {
    match super::read(arguments.iter().map(|&argument| argument.to_owned()).collect(), &files)? {
        Asked::Run(run) => Ok(*run),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_arguments_of_the_chart() {
    let run = read(&[
        "--keep-cap-net-bind-service",
        "--",
        "-c /var/run/cilium/envoy/bootstrap-config.json",
        "--base-id 0",
        "--log-level warning",
        "--log-format [%Y-%m-%d %T.%e][%t][%l][%n] [%g:%#] %v",
        "--log-path /tmp/x.log",
    ])
    .unwrap();
    assert_eq!(run.config, Source::File("/var/run/cilium/envoy/bootstrap-config.json".into()));
    assert_eq!((run.log_level.as_str(), run.log_format), ("warn", LogFormat::Text));
    assert_eq!(run.log_path, Some("/tmp/x.log".into()));
    assert_eq!(run.ignored, ["--keep-cap-net-bind-service", "--base-id 0", "--log-format"]);
}

#[test]
fn the_arguments_of_the_agent() {
    let run = read(&["-l", "info", "-c", "bootstrap.pb", "--base-id", "7", "--log-format", "%t|%l|%n|%v"]).unwrap();
    assert_eq!(run.config, Source::File("bootstrap.pb".into()));
    assert_eq!((run.log_level.as_str(), run.ignored.len()), ("info", 2));
}

#[test]
fn every_form_of_a_value() {
    let run = read(&["--config-path=x", "--log-level", "@/level", "@/flag", "--service-cluster", "@@home"]).unwrap();
    assert_eq!((run.config.clone(), run.log_level.as_str()), (Source::File("x".into()), "debug"));
    assert_eq!((run.workers, run.cluster.as_deref()), (Some(3), Some("@home")));
    let run = read(&["-c x", "--mode validate", "--drain-time-s 30", "--log-format {\"m\": \"%v\"}"]).unwrap();
    assert_eq!((run.check, run.drain, run.log_format), (true, Some(Duration::from_secs(30)), LogFormat::Json));
    assert_eq!(read(&["--config-yaml", "node: {}"]).unwrap().config, Source::Text("node: {}".into()));
    let node = "host~10.0.0.1~x~y";
    assert_eq!(read(&["-c", "x", "--service-node", node]).unwrap().node.as_deref(), Some(node));
}

#[test]
fn no_flag_of_envoy_fails() {
    for flag in FLAGS.iter().filter(|flag| matches!(flag.meaning, Meaning::Ignored | Meaning::Alone)) {
        for &name in flag.names.iter().filter(|name| !["--help", "-h", "--version"].contains(name)) {
            let argument = if flag.meaning == Meaning::Ignored { format!("{name} 1") } else { name.to_owned() };
            assert_eq!(read(&["-c x", &argument]).unwrap().ignored, [argument.as_str()]);
        }
    }
    assert_eq!(super::read(vec!["--version".into()], &files), Ok(Asked::Version));
    assert_eq!(super::read(vec!["-h".into()], &files), Ok(Asked::Help));
}

#[test]
fn an_agent_can_be_told_the_version_that_it_expects() {
    let run = read(&["-c x", "--reported-version d1c4f0ba/1.2.3"]).unwrap();
    assert_eq!((run.reported_version.as_deref(), &run.ignored[..]), (Some("d1c4f0ba/1.2.3"), &[][..]));
}

#[test]
fn nonsense_is_refused_with_a_remedy() {
    for (arguments, expected) in [
        (&[][..], "no configuration is named; write -c FILE"),
        (&["-c"], "-c has no value; write -c VALUE"),
        (&["-c x", "-c y"], "-c y: a configuration is named already; write -c or --config-yaml once"),
        (&["-c x", "--basid 0"], "--basid is no flag of cilium-envoy; remove it, or see tollgate as-envoy --help"),
        (
            &["bootstrap.json"],
            "\"bootstrap.json\" is no flag; write -c FILE for a configuration, or see tollgate as-envoy --help",
        ),
        (&["-l loud"], "--log-level loud: write trace, debug, info, warning, error, critical or off"),
        (&["--concurrency 0"], "--concurrency 0: not a whole number from 1 to 1024"),
        (&["--mode x"], "--mode x: write serve, validate or init_only"),
        (
            &["-c", "@/none"],
            "@/none: cannot read /none: entity not found; name a file, or write @@ for a value that begins with @",
        ),
        (
            &["--service-node me"],
            "--service-node: \"me\" has 1 parts joined by ~ and needs 4, the second an IP address, such as \
             host~127.0.0.1~no-id~localdomain",
        ),
    ] {
        assert_eq!(read(arguments).unwrap_err(), expected, "{arguments:?}");
    }
}
