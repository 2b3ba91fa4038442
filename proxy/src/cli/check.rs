//! `tollgate policy check`: what is wrong in policy files, and what is probably not meant as it is written. Nothing runs
//! and nobody is asked: the files are read as the proxy reads them, compiled as it compiles them, and looked at.

mod damage;
mod input;
mod junit;
mod kubernetes;
mod report;
mod rules;
mod tenants;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use tollgate_policy::Direction;
use tollgate_policy::lint::{self, EntryRef, Known, Severity};

use self::input::{Input, Located, Origin, Source};
use self::rules::Rule;
use super::{Exit, Failure, print};
use crate::cilium_policy::KnownIdentities;
use crate::config::{self, TenantsConfigured};
use crate::policy_file;

/// Find mistakes in policy files before they are deployed
///
/// Files are judged together, as the files of a policy directory are. Each finding has a file and line, a rule, what was
/// seen, why it matters and what to write instead; docs/policy-check.md has every rule with an example.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  tollgate policy check deploy/examples/policies/helloworld.json

For programs, with notes as findings:
  tollgate policy check --fail-on note -o json deploy/examples/policies/*

Exit codes: 0 nothing found (notes do not count unless --fail-on says so); 1 findings; 2 a file cannot be used; \
3 cannot tell, because there is no policy and no tenant in the files.")]
pub(super) struct Args {
    /// Policy files, or directories of them (*.json, *.yaml, *.yml): cilium.NetworkPolicy as JSON, YAML or protobuf (also a whole xDS response), tollgate.tenant.v1.Tenant as JSON or YAML, or CiliumNetworkPolicy and
    /// CiliumClusterwideNetworkPolicy as YAML or JSON
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Labels of identities and endpoints, so that selectors of a CiliumNetworkPolicy can be followed
    #[arg(long, value_name = "FILE")]
    identities: Option<PathBuf>,
    /// SDS name of a secret that will be there; may be repeated
    #[arg(long = "secret", value_name = "NAME")]
    secrets: Vec<String>,
    /// Configuration of the proxy, whose `secrets:` and `tenants:` will be there, and in whose policy directory it refuses Kubernetes resources
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Judge each file on its own
    #[arg(long)]
    apart: bool,
    /// The least grave finding that makes the check fail
    #[arg(long, value_enum, value_name = "SEVERITY", default_value_t = FailOn::Warning)]
    fail_on: FailOn,
    /// How to print it
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    output: Form,
}

/// How findings are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people.
    #[default]
    Text,
    /// For programs: one object, described in docs/policy-check.md.
    Json,
    /// For CI systems: JUnit XML.
    Junit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FailOn {
    Note,
    Warning,
    Error,
}

impl From<FailOn> for Severity {
    fn from(fail_on: FailOn) -> Self {
        match fail_on {
            FailOn::Note => Self::Note,
            FailOn::Warning => Self::Warning,
            FailOn::Error => Self::Error,
        }
    }
}

/// A finding with its place in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reported {
    rule: Rule,
    at: Located,
    what: String,
    instead: String,
    because_of: Option<Located>,
}

/// What a check came to.
#[derive(Debug, Default)]
struct Checked {
    files: Vec<PathBuf>,
    policies: usize,
    tenants: usize,
    /// By file, then by line.
    findings: Vec<Reported>,
    /// At least one file, or a resource in it, cannot be used at all.
    unusable: bool,
}

impl Checked {
    fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.rule.severity() == severity).count()
    }

    fn exit(&self, fail_on: Severity) -> Exit {
        if self.unusable {
            Exit::BadInput
        } else if self.findings.iter().any(|finding| finding.rule.severity() >= fail_on) {
            Exit::Findings
        } else if self.policies + self.tenants == 0 {
            Exit::CannotTell
        } else {
            Exit::Fine
        }
    }
}

pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    let known = args.identities.as_deref().map(KnownIdentities::read).transpose().map_err(Failure::bad_input)?;
    let mut secrets = args.secrets.clone();
    let (mut directory, mut configured) = (None, None);
    if let Some(config) = &args.config {
        let named = config::policy_directory(config).map_err(Failure::bad_input)?;
        directory = named.and_then(|directory| directory.canonicalize().ok());
        secrets.extend(config::secret_names(config).map_err(Failure::bad_input)?);
        configured = Some(config::tenants_configured(config).map_err(Failure::bad_input)?);
    }
    let named = policy_file::expand(&args.files);
    let by_proxy = |file: &Path| {
        let here = policy_file::whereabouts(file);
        policy_file::is_policy_file(file) && directory.is_some() && here.parent() == directory.as_deref()
    };
    let mut inputs: Vec<(PathBuf, Input)> =
        named.errors.iter().map(|error| (error.place.file.to_path_buf(), Input::unreadable(error))).collect();
    inputs.extend(named.files.into_iter().map(|(file, _)| {
        let input = Input::read(&file, by_proxy(&file));
        (file, input)
    }));
    let given = Given { known, secrets, configured };
    let checked = check(inputs, &given, args.apart);
    let fail_on = Severity::from(args.fail_on);
    match args.output {
        Form::Text => print(&report::text(&checked))?,
        Form::Json => print(&report::json(&checked))?,
        Form::Junit => print(&junit::document(&checked, fail_on))?,
    };
    Ok(checked.exit(fail_on))
}

/// What will be there beside the files.
struct Given {
    known: Option<KnownIdentities>,
    secrets: Vec<String>,
    configured: Option<TenantsConfigured>,
}

fn check(inputs: Vec<(PathBuf, Input)>, given: &Given, apart: bool) -> Checked {
    let Given { known, secrets, configured } = given;
    let (files, inputs): (Vec<PathBuf>, Vec<Input>) = inputs.into_iter().unzip();
    let mut checked = Checked { files, ..Checked::default() };
    let mut sets: Vec<Input> = Vec::new();
    for input in inputs {
        match sets.first_mut() {
            Some(together) if !apart => together.join(input),
            _ => sets.push(input),
        }
    }
    for mut set in sets {
        checked.policies += set.sources.len() + set.kubernetes.len();
        checked.tenants += set.tenants.len();
        checked.findings.extend(tenants::contested(&set.tenants));
        checked.findings.extend(configured.iter().flat_map(|configured| tenants::beside(configured, &set.tenants)));
        let (made, given) = kubernetes::translate(std::mem::take(&mut set.kubernetes), known.as_ref());
        set.join(made);
        checked.unusable |= set.unusable;
        checked.findings.append(&mut set.findings);
        // What a translation makes has numbers of its own, which mean nothing next to those of other policies.
        let (made, written) = set.sources.into_iter().partition(|source| matches!(source.origin, Origin::Parts(_)));
        // Nor do what is left of resources that cannot be used.
        let (sound, damaged): (_, Vec<_>) =
            Vec::into_iter(written).partition(|source: &Source| source.mistakes.is_empty());
        lint_set(sound, secrets, &mut checked.findings);
        lint_set(made, secrets, &mut checked.findings);
        add_as_given(given, secrets, &mut checked.findings);
        for source in damaged {
            lint_set(vec![source], secrets, &mut checked.findings);
        }
    }
    checked.findings.sort_by(|a, b| (&a.at.file, a.at.line).cmp(&(&b.at.file, b.at.line)));
    for finding in &mut checked.findings {
        finding.what = policy_file::shortened(&finding.what);
        finding.instead = policy_file::shortened(&finding.instead);
    }
    let mut seen = HashSet::new();
    // Several endpoints can have one source.
    checked.findings.retain(|finding| seen.insert((finding.rule, finding.at.clone(), finding.what.clone())));
    checked
}

/// What is found of resources with the identities that are known.
fn add_as_given(given: Vec<Source>, secrets: &[String], findings: &mut Vec<Reported>) {
    let pointless = |finding: &Reported| matches!(finding.rule, Rule::Policy(lint) if kubernetes::is_pointless(lint));
    let always: HashSet<Located> = findings.iter().filter(|f| pointless(f)).map(|f| f.at.clone()).collect();
    let mut found = Vec::new();
    lint_set(given, secrets, &mut found);
    found.retain(|finding| !pointless(finding) || !always.contains(&finding.at));
    findings.extend(found.into_iter().map(|f| if pointless(&f) { kubernetes::as_given(f) } else { f }));
}

fn lint_set(sources: Vec<Source>, secrets: &[String], findings: &mut Vec<Reported>) {
    let mistakes: Vec<Vec<String>> = sources.iter().map(|source| source.mistakes.clone()).collect();
    let entries = |of: fn(&Source) -> &[(Direction, usize)]| -> Vec<EntryRef> {
        let of = |(policy, source)| of(source).iter().map(move |(direction, entry)| (policy, *direction, *entry));
        let entries = sources.iter().enumerate().flat_map(of);
        entries.map(|(policy, direction, entry)| EntryRef { policy, direction, entry }).collect()
    };
    let (partial, all_protocols) = (entries(|source| &source.partial), entries(|source| &source.all_protocols));
    let (models, origins): (Vec<_>, Vec<_>) = sources.into_iter().map(|source| (source.policy, source.origin)).unzip();
    let mut found = lint::lint(&models, &Known { secrets, partial: &partial, all_protocols: &all_protocols });
    if origins.iter().any(|origin| matches!(origin, Origin::Parts(_))) {
        kubernetes::keep_what_holds_everywhere(&mut found, &models, &origins);
    }
    for finding in found {
        if !damage::still_holds(&finding, &mistakes[finding.element.policy]) {
            continue;
        }
        let origin = &origins[finding.element.policy];
        let locate = |element: &lint::Element| origins[element.policy].locate(&element.path);
        let mut reported = Reported {
            rule: Rule::Policy(finding.lint),
            at: locate(&finding.element),
            because_of: finding.because_of.as_ref().map(locate),
            what: finding.what.clone(),
            instead: finding.instead.clone(),
        };
        if let Origin::Parts(_) = origin {
            kubernetes::reword(&finding, &mut reported, origin);
        }
        findings.push(reported);
    }
}
