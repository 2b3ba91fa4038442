//! The names of the secrets that a configuration delivers, for those who look at policies on another machine than the proxy's:
//! nothing else in the file is checked, since paths in it are those of the node.

use std::path::{Path, PathBuf};

use super::document::{self, Node, Value};
use super::error::ConfigErrors;
use super::load::read_text;

/// Reads the names under `secrets:`.
///
/// # Errors
/// The file cannot be read or is no mapping in YAML, or an entry of `secrets:` has no name.
pub fn secret_names(path: &Path) -> Result<Vec<String>, ConfigErrors> {
    names(&read_text(path)?, path)
}

/// Reads the policy directory, if that is where policies come from; relative to the working directory.
///
/// # Errors
/// As [`secret_names`], but for what stands under `secrets:`.
pub fn policy_directory(path: &Path) -> Result<Option<PathBuf>, ConfigErrors> {
    let root = mapping(&read_text(path)?, path)?;
    let policies = root.as_ref().and_then(|root| member(root, "policies"));
    Ok(policies.map(|policies| match member(policies, "directory").map(|directory| &directory.value) {
        Some(Value::Text(directory)) => PathBuf::from(directory),
        _ => PathBuf::from("./policies"),
    }))
}

/// The configuration; `None` when it is empty.
fn mapping(text: &str, path: &Path) -> Result<Option<Node>, ConfigErrors> {
    let root = document::parse(text).map_err(|error| {
        let place = error.place.map(|place| (place.line, place.column));
        ConfigErrors::one(path, place, format!("not valid YAML: {}", error.message))
    })?;
    match &root.value {
        Value::Map(_) => Ok(Some(root)),
        Value::Null => Ok(None),
        _ => {
            let place = Some((root.place.line, root.place.column));
            let message = "not a mapping; name the configuration file of a proxy";
            Err(ConfigErrors::one(path, place, message.to_owned()))
        }
    }
}

fn names(text: &str, path: &Path) -> Result<Vec<String>, ConfigErrors> {
    let wrong = |node: &Node, message: &str| {
        ConfigErrors::one(path, Some((node.place.line, node.place.column)), message.to_owned())
    };
    let root = mapping(text, path)?;
    let secrets = root.as_ref().and_then(|root| member(root, "secrets"));
    let list = match secrets.map(|secrets| (secrets, &secrets.value)) {
        None | Some((_, Value::Null)) => return Ok(Vec::new()),
        Some((_, Value::List(list))) => list,
        Some((secrets, _)) => return Err(wrong(secrets, "secrets: not a list; write - {name: NAME, file: FILE}")),
    };
    let name = |(index, item): (usize, &Node)| match member(item, "name").map(|name| &name.value) {
        Some(Value::Text(name)) => Ok(name.clone()),
        _ => Err(wrong(item, &format!("secrets[{index}]: no name; add name: the name by which policies ask for it"))),
    };
    list.iter().enumerate().map(name).collect()
}

fn member<'a>(node: &'a Node, key: &str) -> Option<&'a Node> {
    match &node.value {
        Value::Map(entries) => entries.iter().find(|entry| entry.key == key).map(|entry| &entry.node),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_are_read() {
        let of = |text: &str| names(text, Path::new("t.yaml")).map_err(|error| error.to_string());
        let text = "secrets:\n- {name: a, file: /nowhere/a}\n- {name: b, fil: b}\nlisteners: nonsense\n";
        assert_eq!(of(text), Ok(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!((of(""), of("secrets:\n"), of("xds: {}")), (Ok(vec![]), Ok(vec![]), Ok(vec![])));
        for (text, expected) in [
            ("[", "t.yaml:1:1: not valid YAML: "),
            ("7", "t.yaml:1:1: not a mapping; "),
            ("secrets: a", "t.yaml:1:10: secrets: not a list; "),
            ("secrets:\n- {name: a}\n- {file: b}", "t.yaml:3:3: secrets[1]: no name; "),
        ] {
            let error = of(text).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
