//! The file of `--api-keys`: a name, a key and perhaps a limit a line.

use std::path::Path;

use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::start_config::ConfigError;

/// Somebody who may enter with a key.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    pub name: String,
    key: String,
    /// How many of its requests may wait; `None`: as many as of any client.
    pub waiting: Option<usize>,
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("ApiKey")
            .field("name", &self.name)
            .field("waiting", &self.waiting)
            .finish_non_exhaustive()
    }
}

/// Reads the file: `NAME KEY [WAITING]` a line, `#` begins a comment.
pub(super) fn read(path: &Path) -> Result<Vec<ApiKey>, ConfigError> {
    let refused = |problem: &'static str| ConfigError::Value {
        flag: "api-keys",
        value: path.display().to_string(),
        problem,
    };
    let text = fs_err::read_to_string(path).map_err(|_| refused("cannot be read"))?;
    let keys = parse(&text).ok_or_else(|| refused("has a line that is not NAME KEY [WAITING]"))?;
    if keys.is_empty() {
        return Err(refused(
            "has no key, and would open the server to everybody",
        ));
    }
    Ok(keys)
}

fn parse(text: &str) -> Option<Vec<ApiKey>> {
    text.lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty())
        .map(|line| {
            let mut words = line.split_whitespace();
            let (name, key) = (words.next()?.to_owned(), words.next()?.to_owned());
            let waiting = words.next().map(str::parse).transpose().ok()?;
            words
                .next()
                .is_none()
                .then_some(ApiKey { name, key, waiting })
        })
        .collect()
}

/// The entry of a key, found in the same time whatever is sent.
pub(super) fn find<'a>(keys: &'a [ApiKey], given: &str) -> Option<&'a ApiKey> {
    let mut found = keys.len() as u64;
    for (index, known) in keys.iter().enumerate() {
        let equal: Choice = known.key.as_bytes().ct_eq(given.as_bytes());
        found.conditional_assign(&(index as u64), equal);
    }
    keys.get(found as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_names_keys_and_limits() {
        let keys = parse("# who\nbot  s3cret 4\n\nshop key2 # no limit\n").expect("read");
        assert_eq!((keys[0].name.as_str(), keys[0].waiting), ("bot", Some(4)));
        assert_eq!((keys[1].name.as_str(), keys[1].waiting), ("shop", None));
        assert_eq!(
            find(&keys, "key2").map(|key| key.name.as_str()),
            Some("shop")
        );
        assert_eq!(find(&keys, "nothing"), None);
        assert_eq!(find(&keys, ""), None);
        for broken in ["bot", "bot key many", "bot key 1 2"] {
            assert!(parse(broken).is_none(), "{broken}");
        }
    }

    #[test]
    fn keys_do_not_show_in_logs() {
        let keys = parse("bot s3cret").expect("read");
        assert!(!format!("{keys:?}").contains("s3cret"));
    }
}
