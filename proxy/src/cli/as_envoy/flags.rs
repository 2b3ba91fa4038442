//! Envoy's flags, by what they mean here.

/// A flag.
#[derive(Debug)]
pub(super) struct Flag {
    /// Its spellings.
    pub(super) names: &'static [&'static str],
    pub(super) meaning: Meaning,
}

/// What becomes of a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Names the configuration.
    Config,
    /// Has an effect.
    Honoured,
    /// Has a value and no effect.
    Ignored,
    /// Has no value.
    Alone,
}

const fn flag(names: &'static [&'static str], meaning: Meaning) -> Flag {
    Flag { names, meaning }
}

/// Every flag of Envoy (its command line reference, 1.34 to 1.38) and of the fork.
pub(super) const FLAGS: &[Flag] = &[
    flag(&["-c", "--config-path", "--config-yaml"], Meaning::Config),
    flag(&["-l", "--log-level"], Meaning::Honoured),
    flag(&["--log-format", "--log-path", "--concurrency", "--drain-time-s", "--mode"], Meaning::Honoured),
    flag(&["--service-cluster", "--service-node"], Meaning::Honoured),
    // Ours, for an agent that asks for a certain version.
    flag(&["--reported-version"], Meaning::Honoured),
    flag(
        &[
            "--admin-address-path",
            "--base-id",
            "--base-id-path",
            "--bootstrap-version",
            "--component-log-level",
            "--disable-extensions",
            "--drain-strategy",
            "--file-flush-interval-msec",
            "--file-flush-min-size-kb",
            "--local-address-ip-version",
            "--parent-shutdown-time-s",
            "--restart-epoch",
            "--service-zone",
            "--socket-mode",
            "--socket-path",
            "--stats-tag",
        ],
        Meaning::Ignored,
    ),
    flag(
        &[
            "--allow-unknown-fields",
            "--allow-unknown-static-fields",
            "--cpuset-threads",
            "--disable-hot-restart",
            "--enable-core-dump",
            "--enable-fine-grain-logging",
            "--enable-mutex-tracing",
            "--help",
            "-h",
            "--hot-restart-version",
            "--ignore-unknown-dynamic-fields",
            "--keep-cap-net-bind-service",
            "--log-format-escaped",
            "--log-format-prefix-with-location",
            "--reject-unknown-dynamic-fields",
            "--skip-deprecated-logs",
            "--skip-hot-restart-on-no-parent",
            "--skip-hot-restart-parent-stats",
            "--use-dynamic-base-id",
            "--version",
        ],
        Meaning::Alone,
    ),
];
